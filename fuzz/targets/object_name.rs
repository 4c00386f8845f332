//! Fuzz target of the decoder `object_name`.

#![no_main]

mainstay_fuzz::target!("object_name");
