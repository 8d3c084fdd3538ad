//! The options that name text and models, shared by the stages that need them.

use std::path::PathBuf;

use clap::{Args, ValueEnum, builder::BoolishValueParser};

use super::DatasetSpec;
use crate::stage::ResolvedConfig;

/// The field that holds a conversation where no other is named.
const MESSAGES: &str = "messages";

/// How to reach the hub.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Hub")]
pub struct HubArgs {
    /// Token for private and gated repositories [default: the one `huggingface-cli login` stored]
    #[arg(long, env, value_name = "TOKEN", hide_env_values = true)]
    pub hf_token: Option<String>,
    /// Directory of the hub's cache, which is in its folder `hub` [default: ~/.cache/huggingface]
    #[arg(long, env, value_name = "DIR")]
    pub hf_home: Option<PathBuf>,
    /// Address of the hub or of a mirror [default: huggingface.co]
    #[arg(long, env, value_name = "URL")]
    pub hf_endpoint: Option<String>,
    /// Never use the network: take everything from the cache
    #[arg(long, env, value_parser = BoolishValueParser::new(), num_args = 0..=1, require_equals = true,
          default_value = "false", default_missing_value = "true", action = clap::ArgAction::Set)]
    pub hf_hub_offline: bool,
}

/// Which model.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// Hub id `owner/name`, or a folder with config.json, tokenizer.json and weights
    #[arg(long, env, default_value = "speakleash/Bielik-1.5B-v3.0-Instruct", value_name = "ID")]
    pub model_id: String,
    /// Branch, tag or commit of the model on the hub
    #[arg(long, env, default_value = "main")]
    pub revision: String,
}

/// Which text.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Data")]
pub struct DataArgs {
    /// Hub id `owner/name`, file, folder or quoted glob: .jsonl .json .ndjson .txt (also .gz .zst), .parquet
    #[arg(long, env, default_value = "roneneldan/TinyStories", value_name = "ID")]
    pub hf_dataset: String,
    /// Split to read where files are named after splits; `config/split` chooses a configuration
    #[arg(long, env, default_value = "train", value_name = "NAME")]
    pub data_split: String,
    /// Branch, tag or commit of the dataset on the hub
    #[arg(long, env, default_value = "main", value_name = "REVISION")]
    pub data_revision: String,
    /// Field of a record that holds the text; with PROMPT_TEMPLATE=chat, `messages` if not given
    #[arg(long, env, default_value = "text", value_name = "NAME")]
    pub text_field: String,
    /// Documents to read; 0 reads all
    #[arg(long, env, default_value_t = 10_000, value_name = "N")]
    pub data_limit: u64,
}

/// How a document becomes what the model sees.
#[derive(Args, Clone, Copy, Debug)]
#[command(next_help_heading = "Contexts")]
pub struct ContextArgs {
    /// What the model sees at a time: a whole document, or one of its sentences (UAX 29)
    #[arg(long, env, value_enum, default_value_t = Split::Document)]
    pub split: Split,
    /// Renders a list of messages {role, content} with the tokenizer's chat template
    #[arg(long, env, value_enum, default_value_t = PromptTemplate::None)]
    pub prompt_template: PromptTemplate,
    /// Tokens a document or sentence is cut to, special tokens included
    #[arg(long, env, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_length: u32,
}

/// What the model sees at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Split {
    /// A document, cut to MAX_LENGTH tokens.
    Document,
    /// Each sentence of a document on its own.
    Sentence,
}

/// How a record becomes text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PromptTemplate {
    /// The text field is the text.
    None,
    /// The text field is a list of messages, which the tokenizer's chat template renders.
    Chat,
}

impl ContextArgs {
    /// Whether documents are conversations.
    pub fn chat(&self) -> bool {
        self.prompt_template == PromptTemplate::Chat
    }
}

impl DataArgs {
    /// The dataset that these options name.
    pub fn spec(&self, contexts: &ContextArgs, config: &ResolvedConfig) -> DatasetSpec {
        let usual = contexts.chat() && !config.given("text_field");
        DatasetSpec {
            source: self.hf_dataset.clone(),
            revision: self.data_revision.clone(),
            split: self.data_split.clone(),
            text_field: if usual { MESSAGES.into() } else { self.text_field.clone() },
            messages: contexts.chat(),
            limit: (self.data_limit > 0).then_some(self.data_limit),
        }
    }
}
