//! Handlers without a server, over a small store.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{
    answer::{Answer, Refusal},
    compare, complete, detail,
    fixture::{D_SAE, Fixture, SAES},
    search, strength, table,
};

fn page(fixture: &Fixture, query: &Value) -> Answer<Value> {
    let query: table::Query = serde_json::from_value(query.clone()).unwrap();
    let opened = fixture.library.open("topk")?;
    Ok(serde_json::to_value(table::page(&fixture.library, &opened, &query)?).unwrap())
}

fn latents(page: &Value) -> Vec<usize> {
    page["rows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["latent"].as_u64().unwrap() as usize)
        .collect()
}

/// What a request says once the index is there.
fn once_indexed(mut ask: impl FnMut() -> Answer<Value>) -> Value {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        match ask() {
            Ok(value) if value["indexing"] != json!(["topk"]) && !value["latents"].is_null() => {
                return value;
            }
            Ok(value) if value.get("rows").is_some() => return value,
            Err(refusal) if refusal.retry.is_none() => panic!("{refusal:?}"),
            _ => assert!(Instant::now() < until, "no index"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_table_sorts_and_filters_and_those_without_a_value_come_last() {
    let fixture = Fixture::new();
    let first = |query: Value| latents(&page(&fixture, &query).unwrap());
    assert_eq!(first(json!({"limit": 3})), [D_SAE - 1, 0, 1], "the dead one has density 0");
    assert_eq!(first(json!({"limit": 2, "dead": "no"})), [0, 1]);
    assert_eq!(
        first(json!({"sort": "max", "descending": true, "limit": 2})),
        [D_SAE - 2, D_SAE - 3]
    );
    assert_eq!(first(json!({"sort": "latent", "offset": 7, "limit": 2})), [7, 8]);
    for descending in [false, true] {
        let score = first(json!({"sort": "score", "descending": descending, "limit": 2}));
        assert_eq!(score, [1, 0], "one has a score");
    }
    assert_eq!(first(json!({"sort": "label", "limit": 3})), [2, 1, 0]);
    assert_eq!(first(json!({"sort": "label", "descending": true, "limit": 3})), [1, 2, 0]);
    assert_eq!(first(json!({"name": "BARK"})), [1]);
    assert_eq!(first(json!({"named": "only", "sort": "latent"})), [1, 2]);
    assert_eq!(first(json!({"dead": "only"})), [D_SAE - 1]);
    let whole = page(&fixture, &json!({"sort": "latent", "limit": 500})).unwrap();
    assert_eq!((whole["total"].as_u64(), &whole["index"]["state"]), (Some(48), &json!("absent")));
    let row = &whole["rows"][4];
    assert_eq!((&row["token"], &row["density"]), (&json!(" Old"), &json!(0.005)));
    assert_eq!(whole["rows"][D_SAE - 1]["token"], Value::Null);
    assert_eq!(
        (&whole["rows"][1]["label"], &whole["rows"][1]["score"]),
        (&json!("dogs"), &json!(0.75))
    );
    for bad in [json!({"limit": 0}), json!({"limit": 501}), json!({"name": "x".repeat(257)})] {
        assert_eq!(page(&fixture, &bad).unwrap_err().status.as_u16(), 400, "{bad}");
    }
}

#[test]
fn texts_and_tokens_are_found_once_they_are_indexed() {
    let fixture = Fixture::new();
    let refused = page(&fixture, &json!({"strongest": "old"}));
    if let Err(refusal) = refused {
        assert_eq!((refusal.status.as_u16(), refusal.retry.is_some()), (503, true));
    }
    let found = |query: Value| latents(&once_indexed(|| page(&fixture, &query)));
    let with = |token: u32| (0..D_SAE - 1).filter(|l| *l as u32 % 3 == token).collect::<Vec<_>>();
    assert_eq!(found(json!({"strongest": " oLD ", "sort": "latent"})), with(1));
    let in_third: Vec<usize> = (0..D_SAE - 1).filter(|l| l % 5 == 3).collect();
    assert_eq!(found(json!({"text": "ŻÓŁW 3", "sort": "latent"})), in_third);
    assert_eq!(found(json!({"text": "\0"})), [0; 0]);
    assert_eq!(found(json!({"text": "żółw", "strongest": "the", "dead": "no"})), with(0));

    let query: search::Query =
        serde_json::from_value(json!({"q": "old ŻÓŁW", "limit": 2})).unwrap();
    let found = once_indexed(|| {
        let mut found = search::search(&fixture.library, &query)?;
        found["latents"] = json!([]);
        Ok(found)
    });
    let sentence = &found["sentences"][1];
    assert_eq!(found["sentences"].as_array().unwrap().len(), 2);
    assert_eq!(sentence["text"], "The Old żółw 1\0");
    assert_eq!((&sentence["at"], &sentence["length"]), (&json!(4), &json!(8)));
    assert_eq!(sentence["latents"], json!([46, 41, 36, 31, 26, 21, 16, 11]), "the strongest first");

    let opened = fixture.library.open("topk").unwrap();
    let sentence = once_indexed(|| detail::sentence(&fixture.library, &opened, "20"));
    let strongest = &sentence["latents"][0];
    assert_eq!(
        (&strongest["latent"], &strongest["activations"]["at"]),
        (&json!(42), &json!([0, 3]))
    );
    for missing in ["21", "-1", "x", "99999999999999999999"] {
        let refusal = detail::sentence(&fixture.library, &opened, missing).unwrap_err();
        assert_eq!(refusal.status.as_u16(), 404, "{missing}");
    }
}

#[test]
fn a_latent_comes_with_all_that_its_record_names() {
    let fixture = Fixture::new();
    let opened = fixture.library.open("topk").unwrap();
    let json = detail::latent(&opened, 1).unwrap();
    let latent: Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(latent["record"]["fired"], 2);
    let sentences: Vec<&String> = latent["sentences"].as_object().unwrap().keys().collect();
    assert_eq!(sentences, ["10", "20", "30"]);
    assert_eq!(latent["sentences"]["10"]["tokens"][2], " żółw");
    assert_eq!((&latent["name"]["label"], &latent["score"]), (&json!("dogs"), &json!(0.75)));
    assert_eq!(latent["labels"], json!({"2": "Cats"}));
    for missing in ["48", "-1", "", "1.0", "x"] {
        assert_eq!(opened.latent(missing).unwrap_err().status.as_u16(), 404, "{missing}");
    }
    let strength = |sae: &str| {
        let opened = fixture.library.open(sae).unwrap();
        strength::strength(&fixture.library, &opened, 3).unwrap()
    };
    let known = strength("topk");
    assert_eq!((&known["max"], &known["hook_rms_norm"]), (&json!(4.0), &json!(10.0)));
    assert!((known["decoder_norm"].as_f64().unwrap() - 1.0).abs() < 1e-6);
    assert_eq!(
        known["suggestions"][3],
        json!({"op": "clamp", "value": 4.0, "why": "everywhere as strong as it was anywhere"})
    );
    let unknown = strength("jump");
    assert_eq!((&unknown["max"], &unknown["quantiles"]), (&Value::Null, &json!([])));
    assert_eq!(unknown["suggestions"][0]["value"], json!(1.0));
}

#[test]
fn runs_are_listed_with_what_is_wrong_with_them() {
    let fixture = Fixture::new();
    fs_err::create_dir_all(fixture.run("torn")).unwrap();
    fs_err::write(fixture.run("torn").join("meta.json"), "{").unwrap();
    fs_err::create_dir_all(fixture.run("other")).unwrap();
    let runs = fixture.library.runs().unwrap();
    assert_eq!(runs["problems"][0]["run_id"], "torn");
    assert_eq!(runs["captures"][0]["trainings"], json!(["across", "jump", "normed", "topk"]));
    let named: Vec<u64> = runs["trainings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| t["names"].as_u64().unwrap())
        .collect();
    assert_eq!(named, [0, 0, 0, 2], "the third is of another SAE");
    fs_err::create_dir_all(fixture.run("jump").join("names")).unwrap();
    fs_err::write(fixture.run("jump").join("names/names.jsonl"), "{").unwrap();
    let runs = fixture.library.runs().unwrap();
    assert_eq!(runs["problems"][0]["run_id"], "jump");
    assert_eq!(fixture.library.list().unwrap()["saes"].as_array().unwrap().len(), 3);
    fs_err::remove_file(fixture.run("jump").join("names/names.jsonl")).unwrap();
    let list = fixture.library.list().unwrap();
    assert_eq!((list["saes"].as_array().unwrap().len(), &list["newest"]), (4, &json!("across")));
    let status = |sae: &str| fixture.library.open(sae).unwrap_err().status.as_u16();
    for missing in ["gone", "cap", "torn2", "..", "a/b", ""] {
        assert_eq!(status(missing), 404, "{missing}");
    }
    let detail = fixture.library.detail(&fixture.library.open("topk").unwrap()).unwrap();
    assert_eq!((&detail["dead"], &detail["alive"]), (&json!(1), &json!(47)));
    let steps = detail["curves"]["step"].as_array().unwrap();
    assert!((800..=1000).contains(&steps.len()) && steps.last() == Some(&json!(2499)));
    let counted: u64 =
        detail["densities"]["counts"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum();
    assert_eq!(counted, 47);
    let detail = fixture.library.detail(&fixture.library.open("jump").unwrap()).unwrap();
    assert!(detail["missing"]["hint"].as_str().unwrap().contains("03_top_sentences"));
}

#[test]
fn names_that_change_are_read_again() {
    let fixture = Fixture::new();
    let named = || fixture.library.open("topk").unwrap().names().len();
    assert_eq!(named(), 2);
    fs_err::write(
        fixture.run("topk").join("names/names.jsonl"),
        r#"{"latent":0,"label":"x","description":"","certainty":1,"model":"m"}"#,
    )
    .unwrap();
    assert_eq!(named(), 1);
}

#[test]
fn a_latent_is_its_own_nearest_in_an_equal_sae() {
    let fixture = Fixture::new();
    let compare = |query: Value| {
        let query: compare::Query = serde_json::from_value(query).unwrap();
        compare::compare(&fixture.library, &query)
    };
    // Both were drawn with the same numbers; the thresholds come after the decoder.
    let found = compare(json!({"left": "topk", "right": "normed", "latent": "5", "k": 3})).unwrap();
    assert_eq!(found["nearest"].as_array().unwrap().len(), 3);
    let first = &found["nearest"][0];
    assert_eq!(
        (&first["latent"], &first["mutual"], &first["back"]["latent"]),
        (&json!(5), &json!(true), &json!(5))
    );
    assert!((first["cosine"].as_f64().unwrap() - 1.0).abs() < 1e-5);
    let own = compare(json!({"left": "topk", "right": "topk", "latent": "5"})).unwrap();
    assert_ne!(own["nearest"][0]["latent"], 5);
    assert!(compare(json!({"left": "topk", "right": "topk", "latent": "5", "k": 51})).is_err());
}

#[test]
fn a_text_comes_back_in_tokens_with_the_strongest_latents_first() {
    let fixture = Fixture::new();
    let complete = |request: Value, wanted: bool| -> Answer<Value> {
        let request: complete::Request = serde_json::from_value(request).unwrap();
        request.check()?;
        let both = (&fixture.library, &fixture.engine);
        let wanted = || if wanted { Ok(()) } else { Err(Refusal::gone()) };
        Ok(serde_json::to_value(complete::complete(both, &request, &wanted)?).unwrap())
    };
    let text = "The old house by the sea. ".repeat(12);
    let names: Vec<&str> = SAES.iter().map(|(name, _)| *name).collect();
    let found = complete(json!({"text": text, "saes": names, "top": 3}), true).unwrap();
    let tokens = found["tokens"].as_array().unwrap();
    assert!(tokens.len() > 64, "more than a chunk");
    let whole: String = tokens.iter().map(|t| t["text"].as_str().unwrap()).collect();
    assert_eq!(whole, text);
    assert_eq!((&tokens[0]["special"], &tokens[1]["special"]), (&json!(true), &json!(false)));
    for token in tokens {
        let active = token["latents"]["topk"].as_array().unwrap();
        let values: Vec<f64> = active.iter().map(|a| a["value"].as_f64().unwrap()).collect();
        assert!(values.len() == 3 && values.is_sorted_by(|a, b| a >= b), "{token}");
        assert_eq!(token["latents"].as_object().unwrap().len(), 4);
    }
    let status =
        |answer: Answer<Value>| answer.map_or_else(|r: Refusal| r.status.as_u16(), |_| 200);
    assert_eq!(status(complete(json!({"text": text, "saes": names}), false)), 408);
    for (bad, code) in [
        (json!({"text": "", "saes": []}), 400),
        (json!({"text": "a", "saes": ["gone"]}), 404),
        (json!({"text": "a", "saes": ["topk"], "top": 0}), 400),
        (json!({"text": "a".repeat(16_385), "saes": ["topk"]}), 400),
        (json!({"text": "word ".repeat(400), "saes": ["topk"]}), 400),
    ] {
        assert_eq!(status(complete(bad.clone(), true)), code, "{bad}");
    }
}
