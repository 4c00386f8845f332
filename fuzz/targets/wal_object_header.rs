//! Fuzz target of the decoder `wal_object_header`.

#![no_main]

mainstay_fuzz::target!("wal_object_header");
