//! How many threads to compute with.
//!
//! From the affinity mask and `SLURM_CPUS_PER_TASK`, never from the machine's core count: candle
//! and rayon would otherwise start a thread per physical core of the whole node.

/// The variables that candle, gemm and rayon read once, at their first use.
const POOLS: [&str; 2] = ["RAYON_NUM_THREADS", "CANDLE_NUM_THREADS"];

/// Threads this process may use: `RAYON_NUM_THREADS` if set, else the CPUs it was given.
pub fn count() -> usize {
    positive("RAYON_NUM_THREADS").unwrap_or_else(|| {
        let allowed = std::thread::available_parallelism().map_or(1, usize::from);
        positive("SLURM_CPUS_PER_TASK").map_or(allowed, |cpus| cpus.min(allowed))
    })
}

/// Sets the pools' sizes. Call it first in `main`, before any thread exists.
pub fn apply() {
    let threads = count().to_string();
    for name in POOLS {
        if positive(name).is_none() {
            #[expect(
                unsafe_code,
                reason = "candle takes its thread count from the environment only"
            )]
            // SAFETY: called from `stage::main` before any other thread is started.
            unsafe {
                std::env::set_var(name, &threads);
            }
        }
    }
}

fn positive(name: &str) -> Option<usize> {
    std::env::var(name).ok()?.parse().ok().filter(|n| *n > 0)
}
