"""The structure of an HDF5 file: superblock, object headers, groups, chunk indexes, filters.

It is read here and not through libhdf5 (h5py), which crashes, hangs or corrupts its memory on some
damaged files, inside the process that opened them. Only what describes arrays is read; attributes,
which may hold code, are not. Every read is bounded by the file's size.

Format: "HDF5 File Format Specification Version 4.0", https://support.hdfgroup.org, named by its
sections in the comments.
"""
