//! What was asked, answered and paid, and what would be.

use std::{collections::BTreeMap, path::Path};

use super::{
    answer,
    args::Backend,
    job::{Job, Standing},
    ledger::{self, Progress, Request, State, Usage},
    names,
    price::{self, Price},
    question::{Kind, Question},
};
use crate::stage::{Result, columns::aligned, progress::thousands};

const KINDS: [Kind; 4] = [Kind::Explain, Kind::Detection, Kind::Fuzzing, Kind::Intruder];

/// What of one kind is where.
#[derive(Clone, Copy, Default)]
struct Counts {
    requests: u64,
    open: u64,
    under_way: u64,
    answered: u64,
    unreadable: u64,
    refused: u64,
    failed: u64,
}

impl Counts {
    fn add(&mut self, request: &Request) {
        self.requests += 1;
        match &request.progress {
            Progress::Open if request.is_given_up() => self.failed += 1,
            Progress::Open => self.open += 1,
            Progress::Held => self.under_way += 1,
            Progress::Refused { .. } => self.refused += 1,
            Progress::Answered { text, .. } => {
                // Lists have a length that only their question knows.
                let unreadable =
                    request.asked.kind == Kind::Explain && answer::explanation(text).is_none();
                self.unreadable += u64::from(unreadable);
                self.answered += u64::from(!unreadable);
            }
        }
    }

    fn cells(&self) -> [String; 7] {
        [
            self.requests,
            self.open,
            self.under_way,
            self.answered,
            self.unreadable,
            self.refused,
            self.failed,
        ]
        .map(thousands)
    }
}

/// The state of `names/` for people.
///
/// # Errors
/// Damaged ledgers or names.
pub(super) fn status(dir: &Path) -> Result<String> {
    let mut states = ledger::all(dir)?;
    let mut counts: BTreeMap<Kind, Counts> = KINDS.map(|kind| (kind, Counts::default())).into();
    let money = money(&states);
    let requests = states.iter_mut().map(|state| std::mem::take(&mut state.requests));
    for request in ledger::merged(requests).values() {
        counts.entry(request.asked.kind).or_default().add(request);
    }
    let head = ["", "requests", "open", "under way", "answered", "unreadable", "refused", "failed"];
    let row = |(kind, counts): (&Kind, &Counts)| {
        std::iter::once(kind.name().to_owned()).chain(counts.cells()).collect()
    };
    let rows: Vec<Vec<String>> = counts.iter().map(row).collect();
    let mut out = aligned(&head.map(str::to_owned).to_vec(), &rows, |column| column == 0);
    for (name, intent) in states.iter().flat_map(|state| &state.intents) {
        let batch = intent.batch.as_deref().unwrap_or("not known yet");
        let (n, at) = (intent.ids.len(), intent.at.strftime("%F %T"));
        let backend: Backend = intent.backend;
        out += &format!("batch {batch} of {backend} ({name}): {n} requests, sent {at} UTC\n");
    }
    out += &money;
    let (names, unnamed) = (names::read(dir)?, names::read_unnamed(dir)?);
    out += &format!("names     {}, without a name {}\n", names.len(), unnamed.len());
    for record in unnamed.values().take(10) {
        let said: String = record.said.split_whitespace().collect::<Vec<_>>().join(" ");
        let said: String = said.chars().take(100).collect();
        out += &format!("  latent {}: {}: {said}\n", record.latent, record.reason);
    }
    if unnamed.len() > 10 {
        out += &format!("  and {} more in {}\n", unnamed.len() - 10, names::UNNAMED);
    }
    Ok(out)
}

fn money(states: &[State]) -> String {
    // The sum of no numbers is -0.
    let sum = |of: fn(&State) -> f64| states.iter().map(of).fold(0.0, |a, b| a + b);
    let tokens = |of: fn(&Usage) -> u64| states.iter().map(|s| of(&s.usage)).sum::<u64>();
    let (spent, committed) = (sum(|s| s.spent), sum(State::committed));
    let open = committed - spent;
    format!(
        "tokens    {} read, {} written\ncost      {spent:.4} USD{}\n",
        thousands(tokens(|u| u.input)),
        thousands(tokens(|u| u.output)),
        if open > 0.0 {
            format!(", up to {open:.4} USD more under way or lost")
        } else {
            String::new()
        }
    )
}

/// What asking would take.
#[derive(Default)]
pub(super) struct Plan {
    rows: BTreeMap<Kind, Row>,
}

#[derive(Clone, Copy, Default)]
struct Row {
    requests: u64,
    known: u64,
    usage: Usage,
    at_most: f64,
}

impl Plan {
    /// Adds a question, unless it is answered, under way or was asked in vain.
    pub fn add<'r>(
        &mut self,
        job: &Job<'_>,
        question: &Question,
        known: impl Fn(&str) -> Option<&'r Request>,
    ) {
        let row = self.rows.entry(question.kind).or_default();
        if !matches!(job.standing(question, known), Standing::Open(_)) {
            row.known += 1;
            return;
        }
        row.requests += 1;
        let usage = price::expected(question, &job.asking);
        row.usage.input += usage.input;
        row.usage.output += usage.output;
        row.at_most += job.price.at_most(question, &job.asking);
    }

    /// The table.
    pub fn table(&self, price: Price) -> String {
        let head = ["", "requests", "asked before", "tokens read", "written", "USD", "at most"];
        let cells = |name: &str, row: &Row| {
            vec![
                name.to_owned(),
                thousands(row.requests),
                thousands(row.known),
                thousands(row.usage.input),
                thousands(row.usage.output),
                format!("{:.4}", price.of(row.usage)),
                format!("{:.4}", row.at_most),
            ]
        };
        let mut rows: Vec<Vec<String>> =
            self.rows.iter().map(|(kind, row)| cells(kind.name(), row)).collect();
        let mut all = Row::default();
        for row in self.rows.values() {
            all.requests += row.requests;
            all.known += row.known;
            all.usage.input += row.usage.input;
            all.usage.output += row.usage.output;
            all.at_most += row.at_most;
        }
        rows.push(cells("all", &all));
        aligned(&head.map(str::to_owned).to_vec(), &rows, |column| column == 0)
    }
}
