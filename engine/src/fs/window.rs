//! A stretch of a file mapped for writing: the only mapped memory, and the only `unsafe` code, of the engine.
//!
//! A call to write 200 bytes costs 1 µs, of which the copy is 10 ns; stored into a mapped page they are as safe from the
//! end of the process, for the page belongs to the operating system. What speaks against mapped files does not
//! apply: the pages are read, and made present and writable, when the window is, so that an I/O error shows there and not in a store;
//! should a store yet meet one later (a page that was written back and has to be read or given room again), the process
//! ends by a signal, as it ends on any failed write of the log \[I3\]. Owns: the mapping. Never: what the
//! bytes mean, and never a file that others cut short.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;

use memmap2::{MmapMut, MmapOptions};

use super::Window;

/// Mappings begin at multiples of this: no page of a common system is larger.
const ALIGN: u64 = 64 << 10;

/// Read at a time before a stretch is mapped: memory that stays in the processor's cache.
const READ_BYTES: usize = 64 << 10;

#[derive(Debug)]
pub(super) struct Mapped {
    map: MmapMut,
    from: u64,
}

impl Mapped {
    /// `None` where the file system has no mapped files.
    #[expect(unsafe_code, reason = "a mapping is unsafe to make: see inside")]
    pub(super) fn new(file: &fs::File, from: u64, len: usize) -> io::Result<Option<Self>> {
        let start = from / ALIGN * ALIGN;
        let len = len + usize::try_from(from - start).map_err(|_| io::ErrorKind::InvalidInput)?;
        if file.metadata()?.len() < start + len as u64 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a window beyond the end of its file"));
        }
        readable(file, start, len)?;
        // SAFETY: the memory is only ever written, through `copy_from_slice`, by the one owner of this value; no
        // reference to its bytes leaves this module, so nobody can see them change under a `&[u8]`. The directory is
        // locked against other processes of ours. A file cut short by something else makes a store end the process.
        let mapped = unsafe { MmapOptions::new().offset(start).len(len).map_mut(file) };
        // Not every file system can, and there may be too many mappings.
        let Ok(map) = mapped else { return Ok(None) };
        // What is wrong there the call will say that is made instead.
        Ok(populate(&map).is_ok().then_some(Self { map, from: start }))
    }
}

/// Reads the stretch once. Where the disk does not give a page, Linux before 6.9 tries for ever to make it present
/// (the test generic/743 of xfstests shows it); a read says what is wrong. It also brings pages that are not in memory at
/// the speed of reading ahead.
fn readable(file: &fs::File, from: u64, len: usize) -> io::Result<()> {
    let mut buffer = vec![0; READ_BYTES.min(len)];
    let end = from + len as u64;
    let mut at = from;
    while at < end {
        let part = usize::try_from(end - at).unwrap_or(READ_BYTES).min(READ_BYTES);
        let Some(part) = buffer.get_mut(..part) else { break };
        file.read_exact_at(part, at)?;
        at += part.len() as u64;
    }
    Ok(())
}

/// Makes all pages present and writable now, at a tenth of what it costs one by one.
#[cfg(target_os = "linux")]
fn populate(map: &MmapMut) -> io::Result<()> {
    match map.advise(memmap2::Advice::PopulateWrite) {
        // Before Linux 5.14: a page is made ready by the first store into it.
        Err(e) if e.kind() == io::ErrorKind::InvalidInput => Ok(()),
        other => other,
    }
}

#[cfg(not(target_os = "linux"))]
fn populate(_: &MmapMut) -> io::Result<()> {
    Ok(())
}

impl Window for Mapped {
    fn write_at(&mut self, buf: &[u8], offset: u64) -> io::Result<()> {
        let at = offset.checked_sub(self.from).and_then(|at| usize::try_from(at).ok());
        let to = at.and_then(|at| self.map.get_mut(at..)?.get_mut(..buf.len()));
        to.ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(buf);
        Ok(())
    }
}
