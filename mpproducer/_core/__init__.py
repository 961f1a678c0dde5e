"""The C core. `native` is the extension module; its stub is its documentation."""
