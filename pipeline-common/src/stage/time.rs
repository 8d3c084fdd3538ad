//! How long a job may run.

use std::{
    fmt,
    str::FromStr,
    time::{Duration, SystemTime},
};

use super::{ask::ask, progress::clock};

/// A wall time in SLURM's spelling: `30` (minutes), `4:00:00`, `1-00:00:00`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeLimit(pub Duration);

impl FromStr for TimeLimit {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        seconds(text).filter(|s| *s > 0).map(|s| Self(Duration::from_secs(s))).ok_or(
            "expected minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes \
             or days-hours:minutes:seconds",
        )
    }
}

impl fmt::Display for TimeLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&clock(self.0))
    }
}

fn seconds(text: &str) -> Option<u64> {
    let (days, rest) = match text.split_once('-') {
        Some((days, rest)) => (Some(number(days)?), rest),
        None => (None, text),
    };
    let parts = rest.split(':').map(number).collect::<Option<Vec<u64>>>()?;
    let (hours, minutes, seconds) = match (days, &parts[..]) {
        (_, &[h, m, s]) => (h, m, s),
        (Some(_), &[h]) => (h, 0, 0),
        (Some(_), &[h, m]) => (h, m, 0),
        (None, &[m]) => (0, m, 0),
        (None, &[m, s]) => (0, m, s),
        _ => return None,
    };
    Some(days.unwrap_or(0) * 86_400 + hours * 3600 + minutes * 60 + seconds)
}

/// A number of at most six digits, which no sum of them overflows.
fn number(text: &str) -> Option<u64> {
    let plain = text.len() <= 6 && text.bytes().all(|b| b.is_ascii_digit());
    if plain { text.parse().ok() } else { None }
}

/// What is left of this job's time, from `SLURM_JOB_END_TIME` or from `squeue`; none outside a job
/// and for jobs without a limit.
pub fn left(job: Option<u64>) -> Option<TimeLimit> {
    let end = std::env::var("SLURM_JOB_END_TIME").ok();
    end.and_then(|end| until(&end, SystemTime::now())).or_else(|| {
        let text = ask("squeue", &["-h", "-j", &job?.to_string(), "-o", "%L"])?;
        text.lines().next()?.trim().parse().ok()
    })
}

fn until(end: &str, now: SystemTime) -> Option<TimeLimit> {
    let end = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(end.parse().ok()?))?;
    end.duration_since(now).ok().map(TimeLimit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spellings_of_slurm() {
        let parse = |text: &str| text.parse::<TimeLimit>().map(|t| t.0.as_secs());
        for (text, seconds) in [
            ("30", 1800),
            ("1:30", 90),
            ("4:00:00", 14_400),
            ("1-0", 86_400),
            ("1-2:30", 95_400),
            ("2-00:00:01", 172_801),
        ] {
            assert_eq!(parse(text), Ok(seconds), "{text}");
        }
        for bad in ["", "0", "x", "UNLIMITED", "INVALID", "1:2:3:4", "-1", "1-", "1.5", "9999999"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_end_of_a_job_is_a_second_of_the_epoch() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        assert_eq!(until("1060", now), Some(TimeLimit(Duration::from_secs(60))));
        assert_eq!(until("999", now), None);
        assert_eq!(until("soon", now), None);
    }
}
