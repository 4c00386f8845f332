//! Fuzz target of the decoder `wal_object`.

#![no_main]

mainstay_fuzz::target!("wal_object");
