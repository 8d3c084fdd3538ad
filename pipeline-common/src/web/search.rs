//! Names and sentences that hold a text, in one SAE or all.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    answer::{Answer, Refusal},
    browse::{Library, Opened},
    index::{Index, KEPT},
    table::LONGEST,
};

/// Answers of each kind at most.
const MOST: usize = 200;
/// Latents shown of a sentence.
const LATENTS: usize = 8;

/// What to look for.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Query {
    q: String,
    sae: Option<String>,
    #[serde(default = "fifty")]
    limit: usize,
}

fn fifty() -> usize {
    50
}

/// Looks in the names and in the sentences that records name.
pub(super) fn search(library: &Library, query: &Query) -> Answer<Value> {
    if query.q.is_empty() || query.q.len() > LONGEST {
        return Err(Refusal::bad(format!("q has {} bytes, not 1 to {LONGEST}", query.q.len())));
    }
    if !(1..=MOST).contains(&query.limit) {
        return Err(Refusal::bad(format!("limit is {}, not 1 to {MOST}", query.limit)));
    }
    let (saes, mut unsearched) = match &query.sae {
        Some(sae) => (vec![library.open(sae)?], vec![]),
        None => every(library)?,
    };
    let wanted = query.q.to_lowercase();
    let (mut names, mut sentences, mut indexing, mut searched) = (vec![], vec![], vec![], 0);
    for opened in &saes {
        let found = opened.names().holding(&wanted);
        names.extend(found.into_iter().take(query.limit - names.len()).map(|name| {
            json!({
                "sae": opened.meta.run_id, "latent": name.latent, "label": name.label,
                "description": name.description, "score": name.score(),
            })
        }));
        if opened.top().is_err() {
            continue;
        }
        // A further index would take the place of one that this search needs.
        if searched == KEPT {
            unsearched.push(opened.meta.run_id.clone());
            continue;
        }
        searched += 1;
        match library.index(opened).ready() {
            Err(refusal) if refusal.retry.is_some() => indexing.push(&opened.meta.run_id),
            index => {
                let room = query.limit - sentences.len();
                sentences.append(&mut in_sentences(opened, index?, &wanted, room)?);
            }
        }
    }
    Ok(json!({
        "query": query.q, "names": names, "sentences": sentences, "indexing": indexing,
        "unsearched": unsearched,
    }))
}

/// Every SAE, and the names of those that cannot be opened.
fn every(library: &Library) -> Answer<(Vec<Opened>, Vec<String>)> {
    let (mut opened, mut damaged) = (vec![], vec![]);
    for meta in library.catalog.trainings()? {
        match library.open(&meta.run_id) {
            Ok(one) => opened.push(one),
            // What is wrong with it is told with the runs.
            Err(_) => damaged.push(meta.run_id),
        }
    }
    Ok((opened, damaged))
}

fn in_sentences(opened: &Opened, index: &Index, wanted: &str, room: usize) -> Answer<Vec<Value>> {
    let top = opened.top()?;
    let found = index.sentences_with(wanted).take(room);
    let shown = found.map(|place| {
        let sentence = top.sentence(place)?;
        let text = sentence.tokens.concat();
        let (at, length) = utf16_match(&text, wanted).unwrap_or((0, 0));
        let latents = index.latents_of(place).iter().take(LATENTS).collect::<Vec<_>>();
        Ok(json!({
            "sae": opened.meta.run_id, "sentence": sentence.sentence, "text": text,
            "at": at, "length": length, "latents": latents,
        }))
    });
    shown.collect()
}

/// Where `wanted`, in lower case, begins in a text and how long it is there, in UTF-16 units.
fn utf16_match(text: &str, wanted: &str) -> Option<(usize, usize)> {
    // A character may be longer in lower case.
    let (mut lower, mut places, mut at) = (String::new(), vec![], 0);
    for c in text.chars() {
        lower.extend(c.to_lowercase());
        places.resize(lower.len(), (at, at + c.len_utf16()));
        at += c.len_utf16();
    }
    let begin = lower.find(wanted)?;
    let (first, last) = (places.get(begin)?.0, places.get(begin + wanted.len() - 1)?.1);
    Some((first, last - first))
}

#[cfg(test)]
mod tests {
    use super::utf16_match;

    #[test]
    fn a_match_is_counted_as_javascript_does() {
        assert_eq!(utf16_match("A Dog", "dog"), Some((2, 3)));
        assert_eq!(utf16_match("𝒳ŻÓŁW", "żółw"), Some((2, 4)));
        assert_eq!(utf16_match("İstanbul x", "stan"), Some((1, 4)));
        assert_eq!(utf16_match("abc", "d"), None);
    }
}
