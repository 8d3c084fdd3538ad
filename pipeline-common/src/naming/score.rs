//! How well names do: judgements to figures, figures to tables.

use std::{
    collections::BTreeMap,
    ops::{AddAssign, Range},
    path::Path,
};

use rayon::prelude::*;
use serde::Serialize;

use super::{
    answer,
    job::{Job, Standing},
    ledger::Request,
    question::{Kind, Question},
};
use crate::{
    names::{NameRecord, Score, Scores},
    sae::evaluation::bootstrap,
    stage::{Result, atomic, columns::aligned},
};

/// A name is good from here on.
const GOOD: f64 = 0.8;
/// Groups of latents by density.
const GROUPS: usize = 10;
/// The tables' file.
const TABLE: &str = "scores.json";

/// Judgements of a document: how many there are of each right answer, and how many were right.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Tally {
    right: [f64; 2],
    all: [f64; 2],
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        for class in 0..2 {
            self.right[class] += other.right[class];
            self.all[class] += other.all[class];
        }
    }
}

impl Tally {
    /// The mean over the classes of a kind of the share that was right: balanced accuracy; none if a class
    /// does not occur.
    fn accuracy(&self, kind: Kind) -> Option<f64> {
        let classes = classes(kind);
        let shares = classes.clone().map(|c| self.right[c] / self.all[c]);
        let occur = classes.clone().all(|c| self.all[c] > 0.0);
        occur.then(|| shares.sum::<f64>() / classes.len() as f64)
    }
}

/// Right answers that a kind tells apart: an intruder is either found or not.
fn classes(kind: Kind) -> Range<usize> {
    if kind == Kind::Intruder { 0..1 } else { 0..2 }
}

/// What 95 % of a bootstrap over documents lie between: the documents of each class are drawn anew, so that
/// every sample has all classes. None where a class has one document.
fn interval(documents: &[Tally], kind: Kind, seed: u64) -> Option<[f64; 2]> {
    let strata = classes(kind).map(|class| {
        let of_class =
            |tally: &Tally| Tally { right: keep(tally.right, class), all: keep(tally.all, class) };
        documents.iter().filter(|t| t.all[class] > 0.0).map(of_class).collect()
    });
    let strata: Vec<Vec<Tally>> = strata.collect();
    let strata: Vec<&[Tally]> = strata.iter().map(Vec::as_slice).collect();
    let figure = |sums: &Tally| [sums.accuracy(kind).unwrap_or_default()];
    bootstrap::stratified(&strata, seed, figure).map(|[interval]| interval)
}

fn keep(counts: [f64; 2], class: usize) -> [f64; 2] {
    std::array::from_fn(|c| if c == class { counts[c] } else { 0.0 })
}

/// The scores of names whose judgements are complete, as far as they were asked for, and how many judgements
/// are to come.
///
/// # Errors
/// Damaged lines of stage 03.
pub(super) fn scores<'r>(
    job: &Job<'_>,
    names: &[&NameRecord],
    kinds: &[Kind],
    known: impl Fn(&str) -> Option<&'r Request> + Sync,
) -> Result<(BTreeMap<u32, Scores>, usize)> {
    let of_name = |name: &&NameRecord| {
        let mut found = Scores::default();
        let questions = job.judge(name, kinds)?;
        let with_standing = |question: Question| {
            let standing = job.standing(&question, &known);
            (question, standing)
        };
        let asked: Vec<(Question, Standing)> = questions.into_iter().map(with_standing).collect();
        let open = asked.iter().filter(|(_, standing)| standing.is_to_come()).count();
        for asked in asked.chunk_by(|(a, _), (b, _)| a.kind == b.kind) {
            *place(&mut found, asked[0].0.kind) = score(asked, &job.asking.model);
        }
        Ok(((name.latent, found), open))
    };
    let found: Vec<((u32, Scores), usize)> =
        names.par_iter().map(of_name).collect::<Result<_>>()?;
    let open = found.iter().map(|(_, open)| open).sum();
    Ok((found.into_iter().map(|(scores, _)| scores).collect(), open))
}

fn place(scores: &mut Scores, kind: Kind) -> &mut Option<Score> {
    match kind {
        Kind::Fuzzing => &mut scores.fuzzing,
        Kind::Intruder => &mut scores.intruder,
        Kind::Detection | Kind::Explain => &mut scores.detection,
    }
}

/// The score of one kind by a model; none while questions are open, or if too few were answered.
fn score(asked: &[(Question, Standing)], model: &str) -> Option<Score> {
    let mut documents: BTreeMap<u64, Tally> = BTreeMap::new();
    let mut judgements = 0;
    for (question, standing) in asked {
        let answers = match standing {
            Standing::Open(_) | Standing::UnderWay => return None,
            Standing::Vain => continue,
            Standing::Answered { text } => match question.kind {
                Kind::Intruder => answer::intruder(text).map(|n| vec![n]),
                _ => answer::judgements(text, question.truth.len()),
            },
        };
        for (truth, given) in question.truth.iter().zip(answers.unwrap_or_default()) {
            let class = if question.kind == Kind::Intruder { 0 } else { truth.answer as usize };
            let tally = documents.entry(truth.document).or_default();
            tally.all[class] += 1.0;
            tally.right[class] += f64::from(u8::from(truth.answer == given));
            judgements += 1;
        }
    }
    let documents: Vec<Tally> = documents.into_values().collect();
    let mut whole = Tally::default();
    documents.iter().for_each(|tally| whole += *tally);
    let (Question { latent, kind, .. }, _) = asked.first()?;
    Some(Score {
        value: whole.accuracy(*kind)?,
        interval: interval(&documents, *kind, (*latent).into()),
        judgements,
        model: model.to_owned(),
    })
}

/// A line of the table: latents of similar density.
#[derive(Debug, Serialize)]
struct Group {
    /// Smallest and largest density.
    density: [f64; 2],
    names: usize,
    #[serde(flatten)]
    kinds: BTreeMap<&'static str, Share>,
}

/// Of the names with a score.
#[derive(Debug, Default, Serialize)]
struct Share {
    names: usize,
    mean: f64,
    /// The share of those from [`GOOD`] on.
    good: f64,
}

#[derive(Serialize)]
struct Table {
    good_from: f64,
    all: Group,
    by_density: Vec<Group>,
}

/// Writes the table of all names into `names/`; the same for people.
///
/// # Errors
/// Any I/O error.
pub(super) fn table(
    dir: &Path,
    names: &BTreeMap<u32, NameRecord>,
    density: impl Fn(u32) -> f64,
) -> Result<String> {
    let mut ordered: Vec<(f64, &NameRecord)> =
        names.values().map(|name| (density(name.latent), name)).collect();
    ordered.sort_by(|a, b| a.0.total_cmp(&b.0));
    let count = ordered.len();
    let groups = (0..GROUPS).map(|g| g * count / GROUPS..(g + 1) * count / GROUPS);
    let by_density = groups.filter(|range| !range.is_empty()).map(|range| group(&ordered[range]));
    let table = Table { good_from: GOOD, all: group(&ordered), by_density: by_density.collect() };
    atomic::write_json(&dir.join(TABLE), &table)?;
    Ok(shown(&table))
}

fn group(names: &[(f64, &NameRecord)]) -> Group {
    let end = |at: Option<&(f64, &NameRecord)>| at.map_or(0.0, |(density, _)| *density);
    let share = |kind: Kind| {
        let value = |(_, name): &(f64, &NameRecord)| {
            place(&mut name.scores.clone(), kind).as_ref().map(|score| score.value)
        };
        let values: Vec<f64> = names.iter().filter_map(value).collect();
        let n = values.len().max(1) as f64;
        let good = values.iter().filter(|v| **v >= GOOD).count() as f64 / n;
        (kind.name(), Share { names: values.len(), mean: values.iter().sum::<f64>() / n, good })
    };
    Group {
        density: [end(names.first()), end(names.last())],
        names: names.len(),
        kinds: Kind::JUDGEMENTS.into_iter().map(share).collect(),
    }
}

fn shown(table: &Table) -> String {
    let mut head = vec!["density".to_owned(), "names".to_owned()];
    for kind in Kind::JUDGEMENTS {
        head.extend([kind.name().to_owned(), format!(">= {GOOD}")]);
    }
    let line = |label: String, group: &Group| {
        let mut line = vec![label, group.names.to_string()];
        for kind in Kind::JUDGEMENTS {
            let share = group.kinds.get(kind.name()).filter(|share| share.names > 0);
            line.extend(match share {
                Some(share) => {
                    [format!("{:.3}", share.mean), format!("{:.0} %", share.good * 100.0)]
                }
                None => ["-".to_owned(), "-".to_owned()],
            });
        }
        line
    };
    let label = |group: &Group| format!("{:.1e} to {:.1e}", group.density[0], group.density[1]);
    let mut rows: Vec<Vec<String>> = table.by_density.iter().map(|g| line(label(g), g)).collect();
    rows.push(line("all".to_owned(), &table.all));
    aligned(&head, &rows, |column| column == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accuracy_is_balanced_and_needs_every_class() {
        let tally = Tally { right: [9.0, 1.0], all: [10.0, 2.0] };
        assert_eq!(tally.accuracy(Kind::Detection), Some(0.7));
        let one = Tally { right: [3.0, 0.0], all: [4.0, 0.0] };
        assert_eq!((one.accuracy(Kind::Fuzzing), one.accuracy(Kind::Intruder)), (None, Some(0.75)));
        assert_eq!(Tally::default().accuracy(Kind::Intruder), None);
    }

    #[test]
    fn samples_have_every_class() {
        let right = Tally { right: [1.0, 0.0], all: [1.0, 0.0] };
        let wrong = Tally { right: [0.0, 0.0], all: [0.0, 1.0] };
        let both = [right, wrong, right, wrong];
        assert_eq!(interval(&both, Kind::Detection, 1), Some([0.5, 0.5]));
        assert_eq!(interval(&[right, right, wrong], Kind::Detection, 1), None);
        assert_eq!(interval(&[right, right], Kind::Intruder, 1), Some([1.0, 1.0]));
    }

    #[test]
    fn the_table_goes_by_density() {
        let dir = tempfile::tempdir().unwrap();
        let name = |latent: u32| {
            let value = f64::from(latent) / 20.0;
            let score = Score { value, judgements: 1, ..Score::default() };
            let scores = Scores { detection: Some(score), ..Scores::default() };
            (latent, NameRecord { latent, scores, ..NameRecord::default() })
        };
        let names: BTreeMap<u32, NameRecord> = (0..20).map(name).collect();
        let table = table(dir.path(), &names, |latent| f64::from(latent) * 1e-3).unwrap();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 12, "{table}");
        assert!(lines[1].starts_with("0.0e0 to 1.0e-3") && lines[1].contains("0 %"), "{table}");
        assert!(lines[10].contains("0.925") && lines[10].contains("100 %"), "{table}");
        assert!(lines[11].starts_with("all") && lines[11].contains("20 %"), "{table}");
        let file = fs_err::read_to_string(dir.path().join(TABLE)).unwrap();
        let file: serde_json::Value = serde_json::from_str(&file).unwrap();
        assert_eq!(file["all"]["detection"]["good"], 0.2);
        assert_eq!(file["by_density"][9]["detection"]["names"], 2);
    }
}
