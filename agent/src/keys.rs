//! Key pairs: made, imported, and their fingerprints.
