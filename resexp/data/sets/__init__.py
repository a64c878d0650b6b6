"""One module for each kind of image set; its name is what ``data.loader`` says.

A module offers ``check_present`` and ``load``, as ``resexp.data.Loader`` says; nothing lists it.
"""
