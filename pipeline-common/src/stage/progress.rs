//! Progress with rate and ETA: a bar on a terminal, a log line every 30 s in a batch job, and the
//! worker's progress file.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::Reporter;

const LINE_EVERY: Duration = Duration::from_secs(30);
const BAR: &str = "{prefix} {bar:30} {pos}/{len} {msg}";

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Display {
    /// A bar that redraws itself.
    Bar,
    /// A log line now and then.
    Lines,
}

/// What is counted besides units of work, and rated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rated {
    Tokens,
    Bytes,
}

/// Counts units of work (documents, steps) and tokens.
#[derive(Debug)]
pub struct Progress {
    doing: String,
    unit: &'static str,
    total: u64,
    done: u64,
    tokens: u64,
    /// Units and tokens of earlier processes.
    already: (u64, u64),
    began: Instant,
    last_line: Instant,
    bar: Option<ProgressBar>,
    rated: Rated,
    reporter: Option<Reporter>,
}

impl Progress {
    pub(super) fn new(doing: &str, total: u64, unit: &'static str, display: Display) -> Self {
        let bar = (display == Display::Bar).then(|| {
            let bar = ProgressBar::new(total).with_prefix(doing.to_owned());
            if let Ok(style) = ProgressStyle::with_template(BAR) {
                bar.set_style(style);
            }
            bar
        });
        let now = Instant::now();
        let doing = doing.to_owned();
        Self {
            doing,
            unit,
            total,
            done: 0,
            tokens: 0,
            already: (0, 0),
            began: now,
            last_line: now,
            bar,
            rated: Rated::Tokens,
            reporter: None,
        }
    }

    /// Rates bytes instead of tokens.
    #[must_use]
    pub fn of_bytes(mut self) -> Self {
        self.rated = Rated::Bytes;
        self
    }

    /// Keeps the worker's progress file up to date, too.
    #[must_use]
    pub fn reported_by(mut self, reporter: &Reporter) -> Self {
        self.reporter = Some(reporter.clone());
        self
    }

    /// Counts work that an earlier process did: part of the total, not of the rate.
    pub fn resume_at(&mut self, done: u64, tokens: u64) {
        self.already = (done, tokens);
        self.done = done;
        self.report("");
        self.show(false);
    }

    /// Counts finished work; `note` is shown behind the rate (a loss, for instance).
    pub fn advance(&mut self, units: u64, tokens: u64, note: &str) {
        self.done += units;
        self.tokens += tokens;
        self.report(note);
        if let Some(bar) = &self.bar {
            bar.set_position(self.done);
            bar.set_message(self.rate_line(note));
        } else if self.last_line.elapsed() >= LINE_EVERY {
            self.last_line = Instant::now();
            self.log(note);
        }
    }

    /// Shows the final figures.
    pub fn finish(&self, note: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        self.log(note);
    }

    /// Tokens handled by this process per second.
    pub fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.began.elapsed().as_secs_f64().max(1e-9)
    }

    fn report(&self, note: &str) {
        let Some(reporter) = &self.reporter else { return };
        reporter.update(|beat| {
            beat.done = self.done;
            let tokens = self.already.1 + self.tokens;
            // Work that has none leaves the figures of what came before.
            if tokens > 0 {
                (beat.tokens, beat.tokens_per_second) = (tokens, self.tokens_per_second());
            }
            beat.eta_seconds = self.eta().map(|eta| eta.as_secs_f64());
            note.clone_into(&mut beat.note);
        });
    }

    fn show(&self, finished: bool) {
        if let Some(bar) = &self.bar {
            bar.set_position(self.done);
            if finished {
                bar.finish();
            }
        }
    }

    fn log(&self, note: &str) {
        let percent = 100.0 * self.done as f64 / self.total.max(1) as f64;
        let (done, total) = (thousands(self.done), thousands(self.total));
        let line = self.rate_line(note);
        tracing::info!("{}: {done}/{total} {} ({percent:.0} %) {line}", self.doing, self.unit);
    }

    fn rate_line(&self, note: &str) -> String {
        let rate = self.tokens_per_second() as u64;
        let mut line = match self.rated {
            Rated::Tokens if self.tokens == 0 => {
                let seconds = self.began.elapsed().as_secs_f64().max(1e-9);
                let units = (self.done - self.already.0) as f64 / seconds;
                format!("{} {}/s", thousands(units as u64), self.unit)
            }
            Rated::Tokens => format!("{} tokens/s", thousands(rate)),
            Rated::Bytes => format!("{}/s", bytes(rate)),
        };
        if let Some(eta) = self.eta() {
            line += &format!(" ETA {}", clock(eta));
        }
        if !note.is_empty() {
            line += &format!(" {note}");
        }
        line
    }

    fn eta(&self) -> Option<Duration> {
        let mine = self.done - self.already.0;
        if mine == 0 || self.done >= self.total {
            return None;
        }
        let per_unit = self.began.elapsed().as_secs_f64() / mine as f64;
        Some(Duration::from_secs_f64(per_unit * (self.total - self.done) as f64))
    }
}

/// `1234567` as `1,234,567`.
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// Bytes in binary units with one decimal: `1.5 GiB`.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// `h:mm:ss`.
pub fn clock(d: Duration) -> String {
    let s = d.as_secs();
    format!("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(1_234_567), "1,234,567");
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(3 << 29), "1.5 GiB");
        assert_eq!(clock(Duration::from_secs(3_725)), "1:02:05");
    }

    #[test]
    fn earlier_work_counts_for_the_total_and_not_for_the_rate() {
        let mut p = Progress::new("x", 100, "documents", Display::Lines);
        p.resume_at(90, 9000);
        assert!(p.eta().is_none());
        p.advance(5, 1000, "");
        assert_eq!(p.done, 95);
        assert!(p.eta().is_some());
    }
}
