//! discover_layers: which hooks a model has and what reading them would cost.
//!
//! Reads `config.json` and the headers of safetensors files, never a weight, so that it answers at
//! once on a login node. Of a model on the hub it fetches the configuration only.

mod estimate;
mod report;

use clap::{Args, Parser, builder::BoolishValueParser};

use crate::{
    model::{self, Headers, Hook, HookArgs, ModelError, ModelInfo},
    stage::{CommonArgs, Context, Failure, Result, Stage},
    text::{DataArgs, Hub, HubArgs, ModelArgs},
};
use estimate::Estimate;

const EXAMPLES: &str = "Examples:
  discover_layers --model-id HuggingFaceTB/SmolLM2-135M
  discover_layers --model-id ./checkpoint --hook resid_mid,mlp_out --layers 8,12
  discover_layers --model-id ./checkpoint --json | jq '.hooks[].module_path'";

/// Lists a model's hooks with their names, and what a capture of them would cost
#[derive(Parser, Debug)]
#[command(name = "discover_layers", version, after_help = EXAMPLES)]
pub struct DiscoverLayers {
    #[command(flatten)]
    common: CommonArgs,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    hub: HubArgs,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    hooks: HookArgs,
    #[command(flatten)]
    output: Output,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Estimate")]
struct Output {
    /// Tokens a document is cut to, special tokens included
    #[arg(long, env, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    max_length: u32,
    /// Print one JSON object instead of a table
    #[arg(long, env, value_parser = BoolishValueParser::new(), num_args = 0..=1, require_equals = true,
          default_value = "false", default_missing_value = "true", action = clap::ArgAction::Set)]
    json: bool,
}

/// A model and what was asked about it.
struct Plan {
    info: ModelInfo,
    headers: Option<Headers>,
    /// The hooks that a capture with these settings would read; none if they do not exist.
    chosen: Vec<Hook>,
    estimate: Estimate,
}

impl Stage for DiscoverLayers {
    const SECTION: &'static str = "discover_layers";

    fn common(&self) -> &CommonArgs {
        &self.common
    }

    fn run(&self, context: &Context) -> Result<()> {
        let hub = Hub::new(&self.hub);
        let snapshot = hub.model_dir(&self.model.model_id, &self.model.revision, false)?;
        let info = ModelInfo::from_dir(&snapshot.dir)?;
        let headers = match model::headers(&snapshot.dir) {
            Err(ModelError::Missing { .. } | ModelError::MissingShard { .. }) => None,
            other => Some(other?),
        };
        let layer_given = context.config.0.get("layer_num").is_some_and(|s| s.origin != "default");
        let (chosen, wrong) = match self.hooks.resolve(&info, layer_given) {
            Ok(hooks) => (hooks, None),
            Err(error) => (Vec::new(), Some(Failure::from(error))),
        };
        let estimate =
            Estimate::new(&info, &chosen, self.data.data_limit, self.output.max_length.into());
        let plan = Plan { info, headers, chosen, estimate };
        let text = if self.output.json { report::json(&plan) } else { report::table(&plan) };
        context.print(&text);
        wrong.map_or(Ok(()), Err)
    }

    fn check(&self, context: &Context) -> Result<()> {
        self.run(context)
    }
}
