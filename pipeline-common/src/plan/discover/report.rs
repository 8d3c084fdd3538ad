//! The plan as a table and as JSON.

use serde_json::{Value, json};

use super::{Plan, estimate::NUMBER};
use crate::{
    model::{Hook, ModelInfo, Point, Site, flops_per_token},
    plan::hours,
    stage::{
        columns::aligned,
        progress::{bytes, thousands},
    },
};

/// One JSON object: the model, every hook, the estimate.
pub(super) fn json(plan: &Plan) -> String {
    let Plan { info, headers, chosen, estimate } = plan;
    let recommended = info.middle_layer();
    let hook = |h: &Hook| {
        json!({
            "layer": h.layer,
            "point": h.point,
            "alias": h.point.alias(),
            "module_path": h.module_path(info),
            "transformer_lens": h.transformer_lens(info),
            "signature": h.signature(info),
            "what": h.describe(info),
            "width": h.width(info),
            "bytes_per_token": h.width(info) as u64 * NUMBER,
            "flop_per_token": flops_per_token(info, h, estimate.max_length as f64),
            "recommended_layer": h.layer == Some(recommended),
            "chosen": chosen.contains(h),
        })
    };
    let stored = headers.as_ref().map(|h| {
        json!({"parameters": h.parameters, "bytes": h.bytes,
               "dtypes": h.dtypes.iter().map(|(name, _)| name).collect::<Vec<_>>()})
    });
    let object: Value = json!({
        "architecture": info.architecture,
        "model_type": info.model_type,
        "n_layers": info.n_layers,
        "d_model": info.d_model,
        "d_mlp": info.d_mlp,
        "n_heads": info.n_heads,
        "n_kv_heads": info.n_kv_heads,
        "d_head": info.d_head,
        "vocab_size": info.vocab_size,
        "context_length": info.context_length,
        "tied": info.tied,
        "parameters": info.parameters(),
        "weights": stored,
        "recommended_layer": recommended,
        "hooks": Hook::all(info).iter().map(hook).collect::<Vec<_>>(),
        "estimate": (!chosen.is_empty()).then_some(estimate),
    });
    format!("{object:#}\n")
}

/// The same for people.
pub(super) fn table(plan: &Plan) -> String {
    let mut out = String::new();
    for part in [model(plan), points(&plan.info), names(plan), cost(plan)] {
        out.push_str(&part);
        out.push('\n');
    }
    out.pop();
    out
}

fn model(plan: &Plan) -> String {
    let info = &plan.info;
    let weights = plan.headers.as_ref().map_or_else(
        || "not here: read from config.json alone".to_owned(),
        |h| {
            let dtypes: Vec<&str> = h.dtypes.iter().map(|(name, _)| name.as_str()).collect();
            format!("{} in {}", bytes(h.bytes), dtypes.join(", "))
        },
    );
    let (heads, kv) = (info.n_heads, info.n_kv_heads);
    let rows = [
        ("architecture", format!("{} ({})", info.architecture, info.model_type)),
        ("parameters", thousands(info.parameters())),
        ("weights", weights),
        ("layers", format!("{} (0 to {})", info.n_layers, info.n_layers - 1)),
        ("widths", format!("d_model {}, d_mlp {}", info.d_model, info.d_mlp)),
        ("heads", format!("{heads} of width {}, {kv} for keys and values", info.d_head)),
        ("vocabulary", thousands(info.vocab_size as u64)),
        ("positions", thousands(info.context_length as u64)),
        ("recommended", format!("layer {}, the middle one (marked *)", info.middle_layer())),
    ];
    rows.iter().map(|(key, value)| format!("{key:14}{value}\n")).collect()
}

/// What each point is, once, and why some are missing.
fn points(info: &ModelInfo) -> String {
    let name = |point: Point| json!(point).as_str().unwrap_or_default().to_owned();
    let site = |site: &Site| {
        let layer = site.per_layer().then_some(0);
        let width = Hook { layer, point: site.point }.width(info);
        let stored = width as u64 * NUMBER;
        [name(site.point), width.to_string(), stored.to_string(), site.what.to_owned()]
    };
    let missing = |(_, point): &(_, Point)| {
        let why = format!("none: {}", info.absence(*point)?);
        Some([name(*point), "-".to_owned(), "-".to_owned(), why])
    };
    let absent = Point::ALIASES.iter().filter_map(missing);
    let rows: Vec<[String; 4]> = info.sites().iter().map(site).chain(absent).collect();
    let head = ["point", "width", "B/token", "what"].map(str::to_owned);
    aligned(&head, &rows, |i| i == 0 || i == 3)
}

/// Every hook with its three names.
fn names(plan: &Plan) -> String {
    let info = &plan.info;
    let named = |hook: &Hook| {
        let mark = if hook.layer == Some(info.middle_layer()) { '*' } else { ' ' };
        let path = format!("{mark} {}", hook.module_path(info));
        [path, hook.transformer_lens(info), hook.signature(info)]
    };
    let rows: Vec<[String; 3]> = Hook::all(info).iter().map(named).collect();
    let head = ["  module path", "TransformerLens", "signature"].map(str::to_owned);
    aligned(&head, &rows, |_| true)
}

fn cost(plan: &Plan) -> String {
    let Plan { info, chosen, estimate: e, .. } = plan;
    if chosen.is_empty() {
        return String::new();
    }
    let hooks: Vec<String> = chosen.iter().map(|h| h.module_path(info)).collect();
    let tokens = match e.documents {
        Some(n) => format!(
            "at most {} ({} documents of {} tokens)",
            thousands(e.tokens),
            thousands(n),
            e.max_length
        ),
        None => "1,000,000 (DATA_LIMIT=0 reads all; figures are for a million)".to_owned(),
    };
    let rows = [
        ("hooks", hooks.join(", ")),
        ("tokens", tokens),
        ("disk", format!("{} ({} B a token)", bytes(e.bytes), e.bytes_per_token)),
        ("arithmetic", format!("{:.3e} FLOP ({:.3e} a token)", e.flop, e.flop_per_token)),
        (
            "time here",
            format!(
                "{} (products at {:.0} GFLOP/s)",
                hours(e.cpu_hours),
                e.cpu_flop_per_second / 1e9
            ),
        ),
        ("time on a GPU", format!("{} (100 TFLOP/s, an A100 in practice)", hours(e.gpu_hours))),
    ];
    rows.iter().map(|(key, value)| format!("{key:14}{value}\n")).collect()
}
