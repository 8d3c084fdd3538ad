//! One latent, one sentence.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json, value::RawValue};

use super::{
    answer::{Answer, Refusal},
    browse::{Library, Opened},
    catalog,
    index::Entry,
};
use crate::{
    names::NameRecord,
    stage::Failure,
    top::{TopData, record::LatentRecord},
};

/// Latents of a sentence at most.
const MOST: usize = 100;

#[derive(Serialize)]
struct Latent<'a> {
    sae: &'a str,
    latent: usize,
    record: &'a RawValue,
    sentences: BTreeMap<u64, &'a RawValue>,
    name: Option<&'a NameRecord>,
    score: Option<f64>,
    labels: BTreeMap<u32, &'a str>,
}

/// A latent's record with all that it names, as JSON.
pub(super) fn latent(opened: &Opened, latent: usize) -> Answer<Vec<u8>> {
    let (top, names) = (opened.top()?, opened.names());
    let record = top.latent(latent)?;
    let mut sentences = BTreeMap::new();
    for number in named(&record) {
        if let Some(place) = top.place(number) {
            sentences.insert(number, raw(top.sentence_json(place)?)?);
        }
    }
    let others = record.neighbours.iter().chain(&record.coactive).map(|n| n.latent);
    let others = others.chain(record.contrast.iter().map(|c| c.latent));
    let labels = others.filter_map(|l| Some((l, names.label(l as usize)?))).collect();
    let name = names.get(latent);
    let whole = Latent {
        sae: &opened.meta.run_id,
        latent,
        record: raw(top.latent_json(latent)?)?,
        sentences,
        name,
        score: name.and_then(NameRecord::score),
        labels,
    };
    Ok(serde_json::to_vec(&whole).map_err(std::io::Error::from)?)
}

fn raw(json: &str) -> Answer<&RawValue> {
    serde_json::from_str(json).map_err(damaged)
}

fn damaged(error: serde_json::Error) -> Refusal {
    Failure::input(format!("a line of stage 03's results: {error}")).into()
}

/// What is wanted of many records: the rest is passed over.
#[derive(Deserialize)]
struct Part<'a> {
    #[serde(borrow)]
    activations: BTreeMap<u64, &'a RawValue>,
}

/// Every sentence that a record names.
fn named(record: &LatentRecord) -> BTreeSet<u64> {
    let top = &record.top;
    let ranked = [&top.mean, &top.max, &top.last, &record.importance].into_iter();
    let ranked = ranked.chain(&record.deciles).flatten().map(|ranked| ranked.sentence);
    ranked
        .chain(record.silent.iter().copied())
        .chain(record.contrast.iter().map(|contrast| contrast.sentence))
        .chain(record.activations.keys().copied())
        .collect()
}

/// A sentence and the latents whose records have activations in it.
pub(super) fn sentence(library: &Library, opened: &Opened, number: &str) -> Answer<Value> {
    let top = opened.top()?;
    let parsed = number.parse().ok();
    let found = parsed.and_then(|number| Some((number, top.place(number)?)));
    let Some((number, place)) = found else {
        let what = format!(
            "no latent of `{}` names sentence `{}`",
            opened.meta.run_id,
            catalog::shown(number)
        );
        return Err(Refusal::missing(what).hint("GET /api/search finds those that are named"));
    };
    let entry = library.index(opened);
    Ok(json!({
        "sae": opened.meta.run_id,
        "sentence": top.sentence(place)?,
        "latents": latents(opened, top, &entry, (number, place))?,
        "index": Entry::progress(Some(&entry)),
    }))
}

fn latents(
    opened: &Opened,
    top: &TopData,
    entry: &Arc<Entry>,
    (number, place): (u64, usize),
) -> Answer<Option<Vec<Value>>> {
    let Some(index) = entry.if_ready()? else { return Ok(None) };
    let shown = index.latents_of(place).iter().take(MOST);
    let latents = shown.map(|latent| {
        let line = top.latent_json(*latent as usize)?;
        let part: Part<'_> = serde_json::from_str(line).map_err(damaged)?;
        let label = opened.names().label(*latent as usize);
        let activations = part.activations.get(&number);
        Ok(json!({"latent": latent, "label": label, "activations": activations}))
    });
    Ok(Some(latents.collect::<Answer<Vec<Value>>>()?))
}
