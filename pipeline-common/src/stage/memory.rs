//! Main memory: what there is, and how the C library's allocator treats large blocks.

/// Keeps freed memory in the process.
///
/// A forward pass allocates each layer's outputs anew, tens of MiB at a time. glibc maps such
/// blocks from the kernel and gives them back at once, and a tenth of the pass is spent on fresh
/// pages.
pub fn keep_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        #[expect(unsafe_code, reason = "the allocator has no safe interface")]
        // SAFETY: plain settings of the allocator; a value it does not accept changes nothing.
        unsafe {
            libc::mallopt(libc::M_MMAP_MAX, 0);
            libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
        }
    }
}

/// Bytes that the system can give, where Linux tells.
pub fn available() -> Option<u64> {
    let text = fs_err::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib << 10)
}
