//! Fuzz target of the decoder `ingest`.

#![no_main]

mainstay_fuzz::target!("ingest");
