//! Fuzz target of the decoder `fence_document`.

#![no_main]

mainstay_fuzz::target!("fence_document");
