//! The families that are implemented: one file each, which turns `config.json` into the description
//! of a network.

mod bert;
mod gemma;
mod gemma2;
mod gemma3;
mod gpt2;
mod gpt_neox;
mod granite;
mod llama;
mod mistral;
mod mixtral;
mod modernbert;
mod olmo;
mod olmo2;
mod phi3;
mod qwen2;
mod qwen2_moe;
mod qwen3;
mod qwen3_moe;
mod roberta;
mod starcoder2;

use super::{
    ModelError,
    config_file::ConfigFile,
    encoder::{self, Encoder},
    transformer::{self, Transformer},
};

/// A family: its `model_type`, the class that is assumed where `config.json` names none, and its
/// file's description.
pub struct Family {
    pub model_type: &'static str,
    pub class: &'static str,
    pub describe: fn(&ConfigFile) -> Result<Description, ModelError>,
}

/// A network's settings, checked.
#[derive(Clone, Debug)]
pub enum Description {
    Transformer(Box<transformer::Config>),
    Encoder(encoder::Config),
}

/// A network that is loaded.
pub enum Network {
    Transformer(Transformer),
    Encoder(Encoder),
}

/// All families.
pub const FAMILIES: &[Family] = &[
    family("llama", "LlamaForCausalLM", llama::describe),
    family("mistral", "MistralForCausalLM", mistral::describe),
    family("qwen2", "Qwen2ForCausalLM", qwen2::describe),
    family("qwen3", "Qwen3ForCausalLM", qwen3::describe),
    family("gemma", "GemmaForCausalLM", gemma::describe),
    family("gemma2", "Gemma2ForCausalLM", gemma2::describe),
    family("gemma3_text", "Gemma3ForCausalLM", gemma3::describe),
    family("gemma3", "Gemma3ForConditionalGeneration", gemma3::describe_multimodal),
    family("phi3", "Phi3ForCausalLM", phi3::describe),
    family("gpt2", "GPT2LMHeadModel", gpt2::describe),
    family("gpt_neox", "GPTNeoXForCausalLM", gpt_neox::describe),
    family("olmo", "OlmoForCausalLM", olmo::describe),
    family("olmo2", "Olmo2ForCausalLM", olmo2::describe),
    family("granite", "GraniteForCausalLM", granite::describe),
    family("starcoder2", "Starcoder2ForCausalLM", starcoder2::describe),
    family("mixtral", "MixtralForCausalLM", mixtral::describe),
    family("qwen2_moe", "Qwen2MoeForCausalLM", qwen2_moe::describe),
    family("qwen3_moe", "Qwen3MoeForCausalLM", qwen3_moe::describe),
    family("bert", "BertModel", bert::describe),
    family("roberta", "RobertaModel", roberta::describe),
    family("xlm-roberta", "XLMRobertaModel", roberta::describe),
    family("modernbert", "ModernBertModel", modernbert::describe),
];

const fn family(
    model_type: &'static str,
    class: &'static str,
    describe: fn(&ConfigFile) -> Result<Description, ModelError>,
) -> Family {
    Family { model_type, class, describe }
}

impl From<transformer::Config> for Description {
    fn from(config: transformer::Config) -> Self {
        Self::Transformer(Box::new(config))
    }
}

impl From<encoder::Config> for Description {
    fn from(config: encoder::Config) -> Self {
        Self::Encoder(config)
    }
}
