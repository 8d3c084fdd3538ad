//! The `SLURM_*` environment, read once.

/// Why a worker's share could not be told.
#[derive(Debug, thiserror::Error)]
pub enum SlurmError {
    /// A variable that is present and not a number.
    #[error("{name} is `{value}`, expected a number")]
    NotANumber {
        /// The variable.
        name: &'static str,
        /// What it holds.
        value: String,
    },
    /// A worker's number is not below the number of workers.
    #[error("worker {index} is outside 0..{count}")]
    OutsideShare {
        /// The worker, from 0.
        index: usize,
        /// All workers.
        count: usize,
    },
    /// A job array whose elements are not 0..N.
    #[error(
        "the job array does not run from 0 without gaps, so it does not tell the number of workers"
    )]
    ArrayWithGaps,
}

type Result<T> = std::result::Result<T, SlurmError>;

/// One worker of several over the same work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// This worker, from 0.
    pub index: usize,
    /// All workers.
    pub count: usize,
}

impl Share {
    /// Everything: the only worker of a stage that does not share its work.
    pub const WHOLE: Self = Self { index: 0, count: 1 };
}

/// A typed view of SLURM's variables; absent ones are `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlurmEnv {
    /// `SLURM_JOB_ID`.
    pub job_id: Option<u64>,
    /// `SLURM_ARRAY_JOB_ID`: the id all elements of an array share.
    pub array_job_id: Option<u64>,
    /// `SLURM_ARRAY_TASK_ID`.
    pub array_task_id: Option<usize>,
    /// `SLURM_ARRAY_TASK_MIN`.
    pub array_task_min: Option<usize>,
    /// `SLURM_ARRAY_TASK_MAX`.
    pub array_task_max: Option<usize>,
    /// `SLURM_ARRAY_TASK_COUNT`.
    pub array_task_count: Option<usize>,
    /// `SLURM_PROCID`: this task of an srun step.
    pub proc_id: Option<usize>,
    /// `SLURM_NTASKS`.
    pub tasks: Option<usize>,
    /// `SLURM_CPUS_PER_TASK`.
    pub cpus_per_task: Option<usize>,
    /// `SLURM_RESTART_COUNT`.
    pub restart_count: Option<u32>,
    /// `SLURMD_NODENAME`: this node.
    pub node: Option<String>,
}

impl SlurmEnv {
    /// Reads the process environment.
    ///
    /// # Errors
    /// [`SlurmError::NotANumber`] naming a variable that is present and is not a number.
    pub fn read() -> Result<Self> {
        Self::from_lookup(|name| std::env::var(name).ok())
    }

    /// Reads from any source of variables.
    ///
    /// # Errors
    /// As [`SlurmEnv::read`].
    pub fn from_lookup(get: impl Fn(&str) -> Option<String>) -> Result<Self> {
        Ok(Self {
            job_id: number(&get, "SLURM_JOB_ID")?,
            array_job_id: number(&get, "SLURM_ARRAY_JOB_ID")?,
            array_task_id: number(&get, "SLURM_ARRAY_TASK_ID")?,
            array_task_min: number(&get, "SLURM_ARRAY_TASK_MIN")?,
            array_task_max: number(&get, "SLURM_ARRAY_TASK_MAX")?,
            array_task_count: number(&get, "SLURM_ARRAY_TASK_COUNT")?,
            proc_id: number(&get, "SLURM_PROCID")?,
            tasks: number(&get, "SLURM_NTASKS")?,
            cpus_per_task: number(&get, "SLURM_CPUS_PER_TASK")?,
            restart_count: number(&get, "SLURM_RESTART_COUNT")?,
            node: get("SLURMD_NODENAME").filter(|name| !name.is_empty()),
        })
    }

    /// The job as `squeue` and `scancel` name it: `123`, or `123_4` for an element of an array.
    pub fn job(&self) -> Option<String> {
        match (self.array_job_id, self.array_task_id) {
            (Some(array), Some(task)) => Some(format!("{array}_{task}")),
            _ => self.job_id.map(|id| id.to_string()),
        }
    }

    /// This worker's share: explicit values win, then the job array, then srun's tasks.
    ///
    /// `SLURM_ARRAY_TASK_COUNT` counts the elements as submitted (`--array=3,7` says 2), so a
    /// share is taken from the array only where it starts at 0 and has no gaps.
    ///
    /// # Errors
    /// [`SlurmError`] for an index outside the count or an array with gaps and no explicit count.
    pub fn share(&self, index: Option<usize>, count: Option<usize>) -> Result<Share> {
        let share = match (self.array_task_id, self.proc_id, self.tasks) {
            (Some(task), _, _) => Share {
                index: index.unwrap_or(task),
                count: count.map_or_else(|| self.whole_array(), Ok)?,
            },
            (None, Some(task), Some(tasks)) if tasks > 1 => {
                Share { index: index.unwrap_or(task), count: count.unwrap_or(tasks) }
            }
            _ => Share { index: index.unwrap_or(0), count: count.unwrap_or(1) },
        };
        if share.index < share.count {
            return Ok(share);
        }
        Err(SlurmError::OutsideShare { index: share.index, count: share.count })
    }

    fn whole_array(&self) -> Result<usize> {
        let count = self.array_task_count.unwrap_or(1);
        if self.array_task_min == Some(0) && self.array_task_max.map(|max| max + 1) == Some(count) {
            return Ok(count);
        }
        Err(SlurmError::ArrayWithGaps)
    }
}

fn number<T: std::str::FromStr>(
    get: impl Fn(&str) -> Option<String>,
    name: &'static str,
) -> Result<Option<T>> {
    match get(name).filter(|text| !text.is_empty()) {
        None => Ok(None),
        Some(text) => match text.parse() {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(SlurmError::NotANumber { name, value: text }),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> Result<SlurmEnv> {
        SlurmEnv::from_lookup(|name| {
            pairs.iter().find(|(k, _)| *k == name).map(|(_, v)| (*v).to_owned())
        })
    }

    #[test]
    fn without_slurm_the_share_is_everything() {
        let share = env(&[]).unwrap().share(None, None).unwrap();
        assert_eq!(share, Share { index: 0, count: 1 });
    }

    #[test]
    fn an_array_is_a_share_and_an_explicit_value_wins() {
        let array = [
            ("SLURM_ARRAY_TASK_ID", "2"),
            ("SLURM_ARRAY_TASK_COUNT", "4"),
            ("SLURM_ARRAY_TASK_MIN", "0"),
            ("SLURM_ARRAY_TASK_MAX", "3"),
        ];
        let env = env(&array).unwrap();
        assert_eq!(env.share(None, None).unwrap(), Share { index: 2, count: 4 });
        assert_eq!(env.share(Some(1), Some(2)).unwrap(), Share { index: 1, count: 2 });
    }

    #[test]
    fn a_resubmitted_part_of_an_array_needs_the_count() {
        let array = [
            ("SLURM_ARRAY_TASK_ID", "7"),
            ("SLURM_ARRAY_TASK_COUNT", "2"),
            ("SLURM_ARRAY_TASK_MIN", "3"),
            ("SLURM_ARRAY_TASK_MAX", "7"),
        ];
        let env = env(&array).unwrap();
        assert!(env.share(None, None).is_err());
        assert_eq!(env.share(None, Some(8)).unwrap(), Share { index: 7, count: 8 });
        assert!(env.share(None, Some(7)).is_err());
    }

    #[test]
    fn a_variable_that_is_no_number_is_named() {
        let failure = env(&[("SLURM_PROCID", "x")]).unwrap_err();
        assert!(failure.to_string().contains("SLURM_PROCID is `x`"));
    }
}
