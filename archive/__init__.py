"""Archives of binary codes: hash any images, keep them, find what is like one. What search.py does.

    compute = Compute(setup_device("auto"))
    model = HashModel(Path("runs/best/64bit/mrhash.pth"), compute)
    archive = Archive.create(Path("archives/city"), model)
    with archive.writing():
        add_images(archive, model, [ImagesOf(Path("data/tiles"), model.reading)])
    query, = queries_of_files([Path("a.png")], model, model.reading)
    answer, = answers_to(archive, [query], top=20)

    folder       Archive: codes.npy, items.sqlite and the model, opened together
    items        the database of items; codes: the growing file of codes
    model        HashModel: images -> codes, as test.py makes them
    reading      how files become images; images: of folders and zips; tiles: of large scenes
    adding       images -> archive, on one process or several; originals: read again
    queries      what is searched for, and what was found; answers: as text, CSV, GeoJSON, picture
    page, pages  the archive as a folder for a browser
    export       faiss, .npz; flags: of search.py; outputs: the files that it writes
"""

from archive.adding import add_images
from archive.folder import Archive
from archive.images import ImagesOf
from archive.model import HashModel
from archive.queries import answers_to, queries_of_files, queries_of_names, query_at
from archive.tiles import Scene, scenes_in

__all__ = ["Archive", "HashModel", "ImagesOf", "Scene", "add_images", "answers_to",
           "queries_of_files", "queries_of_names", "query_at", "scenes_in"]
