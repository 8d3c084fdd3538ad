//! Every architecture through the command line.

use pipeline_common::sae::{Activation, formats::saelens};
use serde_json::Value;

use super::workload::{SAVE, TOP, TRAIN, Workload};

/// The fraction of variance unexplained at the first and at the last record.
fn errors(work: &Workload, run: &str) -> (f64, f64) {
    let text = fs_err::read_to_string(work.run(run).join("history.json")).unwrap();
    let records: Vec<Value> = serde_json::from_str(&text).unwrap();
    let of = |record: &Value| record["fvu"].as_f64().unwrap();
    (of(&records[0]), of(records.last().unwrap()))
}

/// A figure of the finished training on held-out rows.
fn held_out_figure(work: &Workload, run: &str, name: &str) -> f64 {
    let meta = fs_err::read(work.run(run).join("meta.json")).unwrap();
    let meta: Value = serde_json::from_slice(&meta).unwrap();
    meta["validation"][name].as_f64().unwrap()
}

/// SAE_ARCH, further settings, what the SAE then does.
type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], Activation);

#[test]
fn every_architecture_learns_and_can_be_read() {
    let work = Workload::new(150);
    work.succeed(SAVE, &[]);
    let (topk, jumprelu) = (Activation::TopK { k: 4 }, Activation::JumpRelu);
    let cases: [Case<'_>; 9] = [
        ("topk", &[("PRECISION", "bf16")], topk),
        ("topk", &[("RESAMPLE_EVERY", "20"), ("DEAD_AFTER", "2000")], topk),
        ("batchtopk", &[("K_ANNEAL", "20")], jumprelu),
        ("matryoshka", &[("PREFIXES", "0.25,1")], jumprelu),
        ("jumprelu", &[("L0_MODE", "tanh")], jumprelu),
        ("jumprelu", &[("L0_MODE", "target"), ("TARGET_L0", "8")], jumprelu),
        ("gated", &[], Activation::Gated),
        ("standard", &[("L1_BY_NORM", "true"), ("UNIT_DECODER", "false")], Activation::Relu),
        ("panneal", &[("P_END", "0.5")], Activation::Relu),
    ];
    for (n, (architecture, settings, expected)) in cases.into_iter().enumerate() {
        let run = format!("training-{n}");
        let common = [("SAE_ARCH", architecture), ("SAE_RUN_ID", &run), ("LR", "0.003")];
        let small = [("BATCH_SIZE_TRAIN", "128"), ("LOG_EVERY", "10"), ("WARMUP", "0")];
        let all: Vec<_> = common.iter().chain(&small).chain(settings).copied().collect();
        work.succeed(TRAIN, &all);
        let (first, last) = errors(&work, &run);
        assert!(last < 0.9 * first, "{architecture} {settings:?}: {first} to {last}");
        let sae = saelens::load(&work.run(&run)).unwrap();
        assert_eq!(sae.activation, expected, "{architecture}");
        work.succeed(TOP, &[("SAE_RUN_ID", &run)]);
    }
}

#[test]
fn products_in_bf16_leave_the_error_within_one_percent() {
    let work = Workload::new(150);
    work.succeed(SAVE, &[]);
    for architecture in ["topk", "batchtopk", "jumprelu", "gated"] {
        let held_out = |precision: &str| {
            let run = format!("{architecture}-{precision}");
            let own = [("SAE_ARCH", architecture), ("PRECISION", precision), ("SAE_RUN_ID", &run)];
            let more = [("LR", "0.003"), ("BATCH_SIZE_TRAIN", "128"), ("VALIDATION", "0.1")];
            work.succeed(TRAIN, &[&own[..], &more].concat());
            held_out_figure(&work, &run, "fvu")
        };
        let (exact, rounded) = (held_out("f32"), held_out("bf16"));
        assert!(exact < 0.9, "{architecture} learnt nothing: {exact}");
        assert!((rounded / exact - 1.0).abs() < 0.01, "{architecture}: {rounded}, in f32 {exact}");
        assert!(rounded != exact, "{architecture}: nothing was rounded");
    }
}

#[test]
fn what_is_chosen_among_a_batch_keeps_k_latents_a_row_of_rows_alone() {
    let work = Workload::new(150);
    work.succeed(SAVE, &[]);
    for architecture in ["batchtopk", "matryoshka"] {
        let own = [("SAE_ARCH", architecture), ("SAE_RUN_ID", architecture), ("LR", "0.003")];
        let more = [("BATCH_SIZE_TRAIN", "128"), ("VALIDATION", "0.1"), ("EPOCHS", "10")];
        work.succeed(TRAIN, &[&own[..], &more].concat());
        let l0 = held_out_figure(&work, architecture, "l0");
        assert!((l0 / 4.0 - 1.0).abs() < 0.05, "{architecture}: L0 {l0}, K is 4");
    }
}

#[test]
fn a_transcoder_reconstructs_another_hook() {
    let work = Workload::new(100);
    work.succeed(SAVE, &[("HOOK", "mlp_in,mlp_out")]);
    let hooks = [("HOOK", "mlp_in"), ("TARGET_HOOK", "mlp_out"), ("LR", "0.003")];
    for (run, skip) in [("plain", "false"), ("skipping", "true")] {
        let more = [("SAE_RUN_ID", run), ("SKIP", skip), ("LOG_EVERY", "10"), ("WARMUP", "0")];
        work.succeed(TRAIN, &[&hooks[..], &more].concat());
        let (first, last) = errors(&work, run);
        assert!(last < 0.9 * first, "{run}: {first} to {last}");
        let sae = saelens::load(&work.run(run)).unwrap();
        assert_eq!(!sae.params.w_skip.is_empty(), skip == "true");
        assert!(!sae.subtract_b_dec);
    }
}
