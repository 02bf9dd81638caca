"""Images by place: what collect.py stands on, and where on earth an image lies.

    pacer = Pacer(per_second=5)
    with gdal():
        source = Tiles(service_of("usgs"), zoom=None, tile_size=256, cache=None, pacer=pacer)
        for footprint in footprints_of_table(Path("places.csv"), metres=640, size=256):
            pixels = cut(source, footprint).pixels  # (3, 256, 256) of exactly that square

    footprints   the places: of georeferenced images; table: of a CSV file
    services     tile services, by name or template, as a source; rasters: what GDAL opens as one
    stac         a catalogue, which is searched place by place
    views        which part of a source, at which of its resolutions, shows a footprint
    cut          a source in any coordinate system -> the pixels of a footprint
    fetch        rate, pauses and refusals of what lies afar
    plan         what a collection will ask, before it begins; record: collect.csv and the files
    flags        of collect.py
    places       footprints in WGS84, distances, GeoJSON: for archives
"""
