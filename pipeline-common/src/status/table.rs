//! The view as a table that fits the terminal.

use std::{collections::BTreeMap, time::Duration};

use console::Style;

use super::view::{Row, Shown, StageRows, View};
use crate::stage::progress::{clock, thousands};

/// Blanks between columns.
const GAP: usize = 2;

const HEAD: [&str; 11] = [
    "STAGE",
    "WORKER",
    "STATE",
    "JOB",
    "DONE/TOTAL",
    "%",
    "TOKENS/S",
    "ETA",
    "RESTARTS",
    "HEARD",
    "HOST",
];

const STATE: usize = 2;

/// Numbers, which are aligned on the right.
const RIGHT: [usize; 6] = [4, 5, 6, 7, 8, 9];

/// Columns that give way where the terminal is narrow, the first one first.
const EXPENDABLE: [usize; 3] = [10, 8, 3];

struct Line {
    cells: [String; HEAD.len()],
    style: Style,
}

/// The whole view, at most `width` columns wide; `colour` on terminals only.
pub fn table(view: &View, width: usize, colour: bool) -> String {
    let mut lines = vec![Line { cells: HEAD.map(str::to_owned), style: Style::new().bold() }];
    for stage in &view.stages {
        lines.extend(stage.workers.iter().map(|row| worker_line(stage, row)));
        if stage.workers.len() > 1 {
            lines.push(total_line(stage));
        }
    }
    let widths = widths(&lines, width);
    let mut out = format!("run {}   {}\n\n", view.run_id, view.at.strftime("%F %T UTC"));
    for line in &lines {
        let text = laid_out(&line.cells, &widths);
        let style = line.style.clone().force_styling(colour);
        out += &format!("{}\n", style.apply_to(text.trim_end()));
    }
    out + "\n" + &below(view)
}

fn worker_line(stage: &StageRows, row: &Row) -> Line {
    let dash = || "-".to_owned();
    let style = match row.state {
        Shown::Running => Style::new().green(),
        Shown::Stalled | Shown::Slurm(_) | Shown::Stopped => Style::new().yellow(),
        Shown::Lost | Shown::Failed => Style::new().red(),
        Shown::Waiting | Shown::Done => Style::new(),
    };
    let cells = [
        stage.stage.to_owned(),
        row.worker.to_string(),
        row.state.to_string(),
        row.job.clone().unwrap_or_else(dash),
        part(row.done, row.total),
        percent(row.done, row.total),
        row.tokens_per_second.map_or_else(dash, |rate| thousands(rate as u64)),
        row.eta_seconds.map_or_else(dash, seconds),
        row.restarts.to_string(),
        row.heard_seconds.map_or_else(dash, ago),
        // The domain is the same for all.
        row.host.as_deref().and_then(|host| host.split('.').next()).unwrap_or("-").to_owned(),
    ];
    Line { cells, style }
}

/// The sums of a stage: rates add up, the slowest worker decides the ETA.
fn total_line(stage: &StageRows) -> Line {
    let sum = |of: fn(&Row) -> u64| stage.workers.iter().map(of).sum::<u64>();
    let (done, total) = (sum(|row| row.done), sum(|row| row.total));
    let rates: Vec<f64> = stage.workers.iter().filter_map(|row| row.tokens_per_second).collect();
    let eta = stage.workers.iter().filter_map(|row| row.eta_seconds).max_by(f64::total_cmp);
    let heard = stage.workers.iter().filter_map(|row| row.heard_seconds).min_by(f64::total_cmp);
    let finished = stage.workers.iter().filter(|row| row.state == Shown::Done).count();
    let dash = || "-".to_owned();
    let cells = [
        stage.stage.to_owned(),
        "total".to_owned(),
        format!("{finished}/{} done", stage.workers.len()),
        String::new(),
        part(done, total),
        percent(done, total),
        if rates.is_empty() { dash() } else { thousands(rates.iter().sum::<f64>() as u64) },
        eta.map_or_else(dash, seconds),
        sum(|row| row.restarts.into()).to_string(),
        heard.map_or_else(dash, ago),
        String::new(),
    ];
    Line { cells, style: Style::new().bold() }
}

/// Each column's width, 0 for those that have no room.
fn widths(lines: &[Line], room: usize) -> [usize; HEAD.len()] {
    let length = |cell: &str| cell.chars().count();
    let mut widths: [usize; HEAD.len()] =
        std::array::from_fn(|i| lines.iter().map(|line| length(&line.cells[i])).max().unwrap_or(0));
    let needed = |widths: &[usize]| {
        widths.iter().filter(|w| **w > 0).map(|w| w + GAP).sum::<usize>().saturating_sub(GAP)
    };
    for (column, least) in [(HEAD.len() - 1, 8), (STATE, 10)] {
        let over = needed(&widths).saturating_sub(room);
        widths[column] = widths[column].saturating_sub(over).max(least.min(widths[column]));
    }
    for column in EXPENDABLE {
        if needed(&widths) > room {
            widths[column] = 0;
        }
    }
    widths
}

fn laid_out(cells: &[String; HEAD.len()], widths: &[usize; HEAD.len()]) -> String {
    let shown = cells.iter().zip(widths).enumerate().filter(|(_, (_, width))| **width > 0);
    let padded = shown.map(|(i, (cell, &width))| {
        let cell = shortened(cell, width);
        if RIGHT.contains(&i) { format!("{cell:>width$}") } else { format!("{cell:width$}") }
    });
    padded.collect::<Vec<_>>().join(&" ".repeat(GAP))
}

/// How many workers are in which state, why some wait or failed, and what is not known.
fn below(view: &View) -> String {
    let mut counts: BTreeMap<&Shown, usize> = BTreeMap::new();
    for row in view.rows() {
        *counts.entry(&row.state).or_default() += 1;
    }
    let counted: Vec<String> = counts.iter().map(|(state, n)| format!("{n} {state}")).collect();
    let all = view.rows().count();
    let mut out = format!("{all} worker{}: {}\n", plural(all), counted.join(", "));
    for stage in &view.stages {
        let mut reasons: BTreeMap<(&Shown, &str), Vec<usize>> = BTreeMap::new();
        for row in stage.workers.iter().filter(|row| !row.reason.is_empty()) {
            reasons.entry((&row.state, &row.reason)).or_default().push(row.worker);
        }
        for ((state, reason), workers) in reasons {
            out += &format!("{} {}: {state} ({reason})\n", stage.stage, ranges(&workers));
        }
    }
    let unreadable = view.unreadable.iter().map(|why| format!("cannot be read: {why}"));
    for line in view.notes.iter().cloned().chain(unreadable) {
        out += &format!("{line}\n");
    }
    out
}

/// Ascending numbers as `0, 4-17`.
fn ranges(numbers: &[usize]) -> String {
    let runs = numbers.chunk_by(|a, b| a + 1 == *b);
    let run = |run: &[usize]| match run {
        [first, .., last] => format!("{first}-{last}"),
        _ => run.iter().map(usize::to_string).collect(),
    };
    runs.map(run).collect::<Vec<_>>().join(", ")
}

const fn plural(n: usize) -> &'static str {
    if n == 1 { "" } else { "s" }
}

fn part(done: u64, total: u64) -> String {
    if total == 0 { "-".to_owned() } else { format!("{}/{}", thousands(done), thousands(total)) }
}

fn percent(done: u64, total: u64) -> String {
    // Rounded down: 100 is said of what is finished.
    done.saturating_mul(100).checked_div(total).map_or_else(|| "-".to_owned(), |p| p.to_string())
}

fn seconds(seconds: f64) -> String {
    Duration::try_from_secs_f64(seconds).map_or_else(|_| "-".to_owned(), clock)
}

/// `17 s`, `35 min`, `5 h`, `3 d`: what matters about a silence.
fn ago(seconds: f64) -> String {
    match seconds as u64 {
        s @ 0..120 => format!("{s} s"),
        s @ 120..7200 => format!("{} min", s / 60),
        s @ 7200..172_800 => format!("{} h", s / 3600),
        s => format!("{} d", s / 86_400),
    }
}

fn shortened(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use proptest::prelude::*;

    use super::*;

    fn row(worker: usize, state: Shown) -> Row {
        Row {
            worker,
            state,
            reason: String::new(),
            job: Some("1234567_12".into()),
            done: 123_456,
            total: 1_250_000,
            tokens_per_second: Some(1_850.0),
            eta_seconds: Some(36_000.0),
            restarts: 2,
            heard_seconds: Some(4.0),
            host: Some("gpu-node-0123.cluster.example.org".into()),
            heartbeat: None,
        }
    }

    fn view(states: Vec<Shown>) -> View {
        let workers = states.into_iter().enumerate().map(|(i, state)| row(i, state)).collect();
        let stage = StageRows { stage: "save_activations", run_id: Some("r".into()), workers };
        let (notes, unreadable) = (vec![], vec![]);
        View {
            run_id: "r".into(),
            at: Timestamp::UNIX_EPOCH,
            stages: vec![stage],
            notes,
            unreadable,
        }
    }

    #[test]
    fn numbers_are_joined_where_they_follow_each_other() {
        assert_eq!(ranges(&[0, 4, 5, 6, 9]), "0, 4-6, 9");
    }

    #[test]
    fn silences_read_well() {
        let said = [0.4, 119.0, 120.0, 7199.0, 7200.0, 200_000.0].map(ago);
        assert_eq!(said, ["0 s", "119 s", "2 min", "119 min", "2 h", "2 d"]);
    }

    #[test]
    fn colour_is_never_the_only_sign() {
        let view = view(vec![Shown::Stalled, Shown::Lost, Shown::Failed]);
        let plain = table(&view, 160, false);
        for sign in ["stalled!", "lost!", "failed!"] {
            assert!(plain.contains(sign), "{plain}");
        }
        assert!(!plain.contains('\u{1b}'));
        assert!(table(&view, 160, true).contains('\u{1b}'));
    }

    proptest! {
        #[test]
        fn rows_never_wrap(
            states in proptest::collection::vec("[A-Z_]{1,40}", 1..5), width in 90_usize..200,
        ) {
            let view = view(states.into_iter().map(Shown::Slurm).collect());
            let text = table(&view, width, false);
            for line in text.lines().skip(2).take(view.rows().count() + 1) {
                prop_assert!(line.chars().count() <= width, "{} {}", line.chars().count(), line);
            }
        }
    }
}
