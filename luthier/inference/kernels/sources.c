// What the library was compiled from: the fingerprint of the sources, as `sources.py` takes it.
const char *luthier_sources(void) { return LUTHIER_SOURCES; }
