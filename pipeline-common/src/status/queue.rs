//! What `squeue` and `sacct` say about jobs. Where they are absent or silent, nothing is known.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read, Seek},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// SLURM's clients wait for a controller that is down; nobody waits that long for a view.
const PATIENCE: Duration = Duration::from_secs(15);

/// States from which a job does not come back by itself. Every other one, unknown ones included,
/// is shown as it is.
const ENDED: &[&str] = &[
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
];

/// A job as SLURM sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// `123`, or `123_4` for an element of an array.
    pub id: String,
    /// The state's own word.
    pub state: String,
    /// Why it waits; empty where SLURM gives no reason.
    pub reason: String,
    /// The job's name.
    pub name: String,
}

impl Job {
    /// Whether it will not run again.
    pub fn has_ended(&self) -> bool {
        ENDED.contains(&self.state.as_str())
    }

    /// Its element of the array `123_4`.
    pub fn element(&self) -> Option<usize> {
        self.id.split_once('_')?.1.parse().ok()
    }
}

/// The jobs that SLURM knows.
#[derive(Clone, Debug, Default)]
pub struct Queue {
    jobs: BTreeMap<String, Job>,
    /// Whether `squeue` answered: only then is a job that is not among them gone.
    pub answered: bool,
    /// What could not be asked.
    pub notes: Vec<String>,
}

impl Queue {
    /// Asks about these jobs and all others of this user.
    pub fn ask(ids: &BTreeSet<String>) -> Self {
        let mut queue = Self::default();
        let user = rustix::process::getuid().as_raw().to_string();
        match squeue(&["--user", &user]) {
            Ok(said) => queue.take(&said),
            Err(why) => {
                queue.notes.push(format!("{why}: states are those of the progress files alone"));
                return queue;
            }
        }
        queue.answered = true;
        // Jobs of somebody else.
        if let Some(list) = queue.unknown(ids)
            && let Ok(said) = squeue(&["--jobs", &list])
        {
            queue.take(&said);
        }
        if let Some(list) = queue.unknown(ids) {
            let format = "JobID,State,ExitCode,Elapsed";
            match answer("sacct", &["-P", "-n", "-X", "-o", format, "-j", &list]) {
                Ok(said) => queue.jobs.extend(ended(&said).map(|job| (job.id.clone(), job))),
                Err(why) => queue.notes.push(format!("{why}: how lost jobs ended is not known")),
            }
        }
        queue
    }

    /// A job by its id.
    pub fn job(&self, id: &str) -> Option<&Job> {
        self.jobs.get(id)
    }

    /// Jobs of this name that have not ended.
    pub fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Job> {
        self.jobs.values().filter(move |job| job.name == name && !job.has_ended())
    }

    fn take(&mut self, said: &str) {
        self.jobs.extend(queued(said).map(|job| (job.id.clone(), job)));
    }

    fn unknown(&self, ids: &BTreeSet<String>) -> Option<String> {
        let unknown: Vec<&str> =
            ids.iter().filter(|id| !self.jobs.contains_key(*id)).map(String::as_str).collect();
        (!unknown.is_empty()).then(|| unknown.join(","))
    }
}

/// The name comes last: it may hold any character.
fn squeue(which: &[&str]) -> Result<String, String> {
    let how = ["--noheader", "--array", "--states=all", "--format=%i|%T|%r|%j"];
    match answer("squeue", &[&how[..], which].concat()) {
        // squeue calls jobs that it has forgotten invalid.
        Err(why) if why.contains("Invalid job id") => Ok(String::new()),
        other => other,
    }
}

fn queued(said: &str) -> impl Iterator<Item = Job> {
    said.lines().filter_map(|line| {
        let fields: Vec<&str> = line.splitn(4, '|').map(str::trim).collect();
        let [id, state, reason, name] = fields[..] else { return None };
        let reason = if reason == "None" { "" } else { reason };
        Some(job(id, state, reason, name))
    })
}

fn ended(said: &str) -> impl Iterator<Item = Job> {
    said.lines().filter_map(|line| {
        let mut fields = line.split('|');
        let (id, state) = (fields.next()?, fields.next()?);
        // `CANCELLED by 1000`
        let (word, rest) = state.split_once(' ').unwrap_or((state, ""));
        (!id.contains('.')).then(|| job(id, word, rest, ""))
    })
}

fn job(id: &str, state: &str, reason: &str, name: &str) -> Job {
    let [id, state, reason, name] = [id, state, reason, name].map(str::to_owned);
    Job { id, state, reason, name }
}

/// What a program prints, or why it said nothing.
fn answer(program: &str, arguments: &[&str]) -> Result<String, String> {
    ask(program, arguments).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => format!("no {program} here"),
        _ => format!("{program}: {e}"),
    })
}

fn ask(program: &str, arguments: &[&str]) -> io::Result<String> {
    // Files, not pipes: a full pipe would stop a program that is waited for.
    let (mut out, mut err) = (tempfile::tempfile()?, tempfile::tempfile()?);
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(err.try_clone()?)
        .spawn()?;
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if began.elapsed() > PATIENCE {
            child.kill()?;
            child.wait()?;
            return Err(io::Error::other(format!("no answer in {} s", PATIENCE.as_secs())));
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    if status.success() {
        return text(&mut out);
    }
    let said = text(&mut err)?;
    let line = said.lines().map(str::trim).find(|line| !line.is_empty());
    Err(io::Error::other(line.map_or_else(|| status.to_string(), str::to_owned)))
}

fn text(file: &mut std::fs::File) -> io::Result<String> {
    let mut bytes = vec![];
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn recorded_answers_are_read() {
        let said = "12_0|RUNNING|None|save_activations\n12_1|PENDING|Priority|save_activations\n\
                    13|PENDING|Dependency|a|b\nnonsense\n14|SPECIAL_EXIT|None|x\n";
        let jobs: Vec<Job> = queued(said).collect();
        assert_eq!(jobs[0], job("12_0", "RUNNING", "", "save_activations"));
        assert_eq!((jobs[1].element(), &jobs[1].reason[..]), (Some(1), "Priority"));
        assert_eq!((jobs[2].element(), &jobs[2].name[..]), (None, "a|b"));
        assert_eq!((jobs.len(), jobs[3].has_ended()), (4, false));
        let said = "12_0|NODE_FAIL|1:0|00:01:02\n12_0.batch|CANCELLED|0:15|00:01:02\n\
                    15|CANCELLED by 1000|0:0|00:00:00\n";
        let jobs: Vec<Job> = ended(said).collect();
        assert_eq!(jobs, [job("12_0", "NODE_FAIL", "", ""), job("15", "CANCELLED", "by 1000", "")]);
        assert!(jobs.iter().all(Job::has_ended));
    }

    proptest! {
        #[test]
        fn every_state_is_kept_as_it_is(state in "[A-Z_]{1,20}", reason in "[ -{}~]{1,20}") {
            let said = format!("7_3|{state}|{reason}|n\n");
            let jobs: Vec<Job> = queued(&said).collect();
            prop_assert_eq!(&jobs[0].state, &state);
            prop_assert_eq!(jobs[0].element(), Some(3));
        }
    }
}
