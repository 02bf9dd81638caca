"""The data sets, one file each, and what finds, reads, splits and keeps their images.

Data sets: eurosat, ucmerced, dsrsid, samples, demo, imagefolder (`--data_name folder`), pairs.

What they share, in the order in which an image passes through:

    base          settings, scenes, the paired dataset
    containers    folders and zips; choice: which files take part; checksums: their content
    names         scenes and classes from paths; folders: what folder and pairs share
    partners      the image of each scene in source 2, or none; pairing: --pair_by and --pairs
    bandfiles     scenes of one file a band
    lists         train.txt, database.txt, test.txt; splits: who trains, who asks
    sources       one image at a time; pixels: by Pillow; rasters: TIFF and JPEG 2000 by rasterio
    bands         --bands and --range; measured: numbers and nodata; colours: numbers to 8 bits;
                  ranges: 2%,98%
    hdf5          DSRSID.mat; wald: MS and PAN of one image, for UC Merced and samples
    store         images decoded once; transforms: resize, crop, flip
    record        what a checkpoint keeps of its images
"""
