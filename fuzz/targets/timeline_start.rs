//! Fuzz target of the decoder `timeline_start`.

#![no_main]

mainstay_fuzz::target!("timeline_start");
