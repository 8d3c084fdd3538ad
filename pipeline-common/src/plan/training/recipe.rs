//! The planned training's settings as a CONFIG for 02_train_sae.

use serde_yaml::{Mapping, Value};

use super::{answer::Answer, forecast::LrFrom, table::findings};
use crate::{
    plan::hours,
    sae::train::TrainSae,
    stage::{Context, Result, Stage},
};

/// Every setting that is not at its default, the capture, and the learning rate that was found.
///
/// # Errors
/// None that is known of: text that cannot be written as YAML.
pub(super) fn yaml(answer: &Answer, context: &Context) -> Result<String> {
    let config = context.config.scientific();
    let given = config.0.iter().filter(|(key, _)| context.config.given(key));
    let mut own: Mapping = given
        .filter_map(|(key, setting)| Some((key.as_str().into(), scalar(setting.value.as_ref()?))))
        .collect();
    if let Some(run) = context.config.value("sae_run_id") {
        own.insert("sae_run_id".into(), run.into());
    }
    if let Some(forecast) = answer.forecast.as_ref().filter(|f| f.lr_from != LrFrom::Default) {
        own.insert("lr".into(), rounded(forecast.lr).into());
    }
    let mut root = Mapping::new();
    if let Some(capture) = &answer.capture {
        let common = Mapping::from_iter([("run_id".into(), capture.as_str().into())]);
        root.insert("common".into(), common.into());
    }
    root.insert(TrainSae::SECTION.into(), own.into());
    let text = serde_yaml::to_string(&root).map_err(std::io::Error::other)?;
    Ok(format!("{}{text}", remarks(answer)))
}

/// A number or a truth value as such, anything else as text.
fn scalar(text: &str) -> Value {
    let value = serde_yaml::from_str(text).unwrap_or(Value::Null);
    if matches!(value, Value::Number(_) | Value::Bool(_)) { value } else { text.into() }
}

/// Three digits.
fn rounded(x: f64) -> f64 {
    format!("{x:.2e}").parse().unwrap_or(x)
}

/// What was expected when it was planned.
fn remarks(answer: &Answer) -> String {
    let mut out = format!(
        "# By plan_run: {} at {:.0} tokens a second; sbatch --time={} --mem={}\n",
        hours(answer.hours),
        answer.rate.tokens_per_second,
        answer.sbatch.time,
        answer.sbatch.mem
    );
    let Some(forecast) = &answer.forecast else { return out };
    let names: Vec<&str> = forecast.runs.iter().map(|run| run.run_id.as_str()).collect();
    out += &format!("# From {}\n", names.join(", "));
    for (key, value) in findings(forecast) {
        out += &format!("# {key:8}{value}\n");
    }
    out
}
