//! How much the system's allocator keeps of what was freed.
//!
//! A store keeps to its memory limit by what it holds; what the allocator holds beside is up to that. glibc's gives each thread an
//! arena of its own, and each keeps what was freed in it; and it raises the size from which memory goes back to the system at once. A
//! store with a limit of 64 MiB, filled and read by seven threads, had up to 181 MiB so, and 94 with what is set here. Others were
//! tried and hold more (mimalloc 219 to 274 MiB as it comes, jemalloc 159). Owns: these settings. Never: how much anybody
//! allocates.

/// Sets it, unless the environment does. Called before there are threads.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "calls into C: see inside")]
pub(crate) fn keep_little() {
    // A second arena costs little memory, and halves the waiting of threads for the first. The size is the one that glibc begins
    // with.
    let settings = [
        ("MALLOC_ARENA_MAX", "glibc.malloc.arena_max", libc::M_ARENA_MAX, 2),
        ("MALLOC_MMAP_THRESHOLD_", "glibc.malloc.mmap_threshold", libc::M_MMAP_THRESHOLD, 128 << 10),
    ];
    let tunables = std::env::var("GLIBC_TUNABLES").unwrap_or_default();
    for (variable, tunable, parameter, value) in settings {
        if std::env::var_os(variable).is_none() && !tunables.contains(tunable) {
            // SAFETY: it takes two numbers and keeps them, and nobody else allocates yet. Refused, all is as it was.
            let _ = unsafe { libc::mallopt(parameter, value) };
        }
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn keep_little() {}
