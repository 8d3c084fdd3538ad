//! The table of latents, sorted and filtered.

use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use super::{
    answer::{Answer, Refusal},
    browse::{Browse, Library, Opened},
    index::{Entry, Index, Progress, strongest_token},
};
use crate::{names::NameRecord, top::TopData};

/// Rows of a page at most.
const MOST: usize = 500;
/// Bytes of a filter at most.
pub(super) const LONGEST: usize = 256;

/// A column to sort by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Column {
    Latent,
    #[default]
    Density,
    Max,
    Weighted,
    Score,
    Label,
}

/// Which latents to show, of those with a property and those without.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Which {
    #[default]
    Any,
    Only,
    No,
}

impl Which {
    fn wants(self, has: bool) -> bool {
        self == Self::Any || (self == Self::Only) == has
    }
}

/// What to show.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Query {
    pub sort: Column,
    pub descending: bool,
    pub name: String,
    pub text: String,
    pub strongest: String,
    pub dead: Which,
    pub named: Which,
    pub offset: usize,
    pub limit: usize,
}

impl Default for Query {
    fn default() -> Self {
        Self {
            sort: Column::default(),
            descending: false,
            name: String::new(),
            text: String::new(),
            strongest: String::new(),
            dead: Which::Any,
            named: Which::Any,
            offset: 0,
            limit: 100,
        }
    }
}

/// A part of the table.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Page {
    total: usize,
    offset: usize,
    rows: Vec<Row>,
    index: Progress,
}

#[derive(Clone, Debug, Serialize)]
struct Row {
    latent: usize,
    density: f64,
    max: f32,
    weighted: f64,
    label: Option<String>,
    score: Option<f64>,
    token: Option<String>,
}

/// The latents in every order that was asked for; those without a value come last in each.
#[derive(Debug, Default)]
pub(super) struct Orders([OnceLock<Vec<u32>>; 12]);

impl Orders {
    fn get<'a>(&'a self, browse: &Browse, top: &TopData, query: &Query) -> &'a [u32] {
        let place = 2 * query.sort as usize + usize::from(query.descending);
        self.0[place].get_or_init(|| order(browse, top, (query.sort, query.descending)))
    }
}

fn order(browse: &Browse, top: &TopData, (column, descending): (Column, bool)) -> Vec<u32> {
    let (table, names) = (top.table(), &browse.names);
    let by_number = |value: &dyn Fn(usize) -> Option<f64>| {
        let mut keys: Vec<(Option<f64>, u32)> =
            (0..top.d_sae()).map(|l| (value(l), l as u32)).collect();
        keys.sort_by(|a, b| match (a.0, b.0) {
            (Some(x), Some(y)) if descending => y.total_cmp(&x),
            (Some(x), Some(y)) => x.total_cmp(&y),
            (x, y) => y.is_some().cmp(&x.is_some()),
        });
        keys.into_iter().map(|(_, latent)| latent).collect()
    };
    match column {
        Column::Latent => by_number(&|l| Some(l as f64)),
        Column::Density => by_number(&|l| Some(table.fired[l] as f64)),
        Column::Max => by_number(&|l| Some(f64::from(table.max[l]))),
        Column::Weighted => by_number(&|l| Some(table.weighted[l])),
        Column::Score => by_number(&|l| names.get(l)?.score()),
        Column::Label => {
            let mut labels: Vec<(Option<String>, u32)> = (0..top.d_sae())
                .map(|l| (names.label(l).map(str::to_lowercase), l as u32))
                .collect();
            labels.sort_by(|a, b| match (&a.0, &b.0) {
                (Some(x), Some(y)) if descending => y.cmp(x),
                (Some(x), Some(y)) => x.cmp(y),
                (x, y) => y.is_some().cmp(&x.is_some()),
            });
            labels.into_iter().map(|(_, latent)| latent).collect()
        }
    }
}

/// The rows that a query asks for.
pub(super) fn page(library: &Library, opened: &Opened, query: &Query) -> Answer<Page> {
    check(query)?;
    let (top, names) = (opened.top()?, opened.names());
    let needs_index = !query.text.is_empty() || !query.strongest.trim().is_empty();
    let entry =
        if needs_index { Some(library.index(opened)) } else { library.index_if_begun(opened) };
    let mut passes = vec![true; top.d_sae()];
    if needs_index && let Some(entry) = &entry {
        keep_found(entry.ready()?, query, &mut passes);
    }
    if !query.name.is_empty() {
        let mut holds = vec![false; top.d_sae()];
        let found = names.holding(&query.name.to_lowercase()).into_iter();
        found.for_each(|name| mark(&mut holds, name.latent));
        both(&mut passes, &holds);
    }
    let wanted = |l: usize| {
        passes[l]
            && query.dead.wants(top.table().fired[l] == 0)
            && query.named.wants(names.get(l).is_some())
    };
    let order = opened.browse().orders.get(opened.browse(), top, query);
    let found: Vec<usize> = order.iter().map(|l| *l as usize).filter(|l| wanted(*l)).collect();
    let shown = found.iter().skip(query.offset).take(query.limit);
    let index = entry.as_deref().map(Entry::if_ready).transpose()?.flatten();
    let rows = shown.map(|l| row(opened, top, index, *l)).collect::<Answer<Vec<Row>>>()?;
    let (total, offset) = (found.len(), query.offset);
    Ok(Page { total, offset, rows, index: Entry::progress(entry.as_deref()) })
}

fn check(query: &Query) -> Answer<()> {
    let texts = [("name", &query.name), ("text", &query.text), ("strongest", &query.strongest)];
    for (name, text) in texts {
        if text.len() > LONGEST {
            return Err(Refusal::bad(format!("{name} is longer than {LONGEST} bytes")));
        }
    }
    if !(1..=MOST).contains(&query.limit) {
        return Err(Refusal::bad(format!("limit is {}, not 1 to {MOST}", query.limit)));
    }
    Ok(())
}

fn keep_found(index: &Index, query: &Query, passes: &mut [bool]) {
    if !query.text.is_empty() {
        let mut holds = vec![false; passes.len()];
        for place in index.sentences_with(&query.text.to_lowercase()) {
            index.latents_of(place).iter().for_each(|latent| mark(&mut holds, *latent));
        }
        both(passes, &holds);
    }
    let token = query.strongest.trim().to_lowercase();
    if !token.is_empty() {
        let holds: Vec<bool> = (0..passes.len())
            .map(|l| index.token(l).is_some_and(|t| t.to_lowercase().contains(&token)))
            .collect();
        both(passes, &holds);
    }
}

/// Names may be of another SAE's latents.
fn mark(holds: &mut [bool], latent: u32) {
    if let Some(held) = holds.get_mut(latent as usize) {
        *held = true;
    }
}

fn both(passes: &mut [bool], holds: &[bool]) {
    passes.iter_mut().zip(holds).for_each(|(pass, hold)| *pass &= hold);
}

fn row(opened: &Opened, top: &TopData, index: Option<&Index>, latent: usize) -> Answer<Row> {
    let name = opened.names().get(latent);
    Ok(Row {
        latent,
        density: top.density(latent),
        max: top.table().max[latent],
        weighted: top.table().weighted[latent],
        label: name.map(|name| name.label.clone()),
        score: name.and_then(NameRecord::score),
        token: match index {
            Some(index) => index.token(latent).map(str::to_owned),
            None => token(top, latent)?,
        },
    })
}

/// A latent's strongest token, from its record.
pub(super) fn token(top: &TopData, latent: usize) -> Answer<Option<String>> {
    if top.table().fired[latent] == 0 {
        return Ok(None);
    }
    strongest_token(top, &top.latent(latent)?)
}
