//! RoBERTa (arXiv:1907.11692) and XLM-RoBERTa (arXiv:1911.02116): BERT whose positions count from
//! behind that of padding.

use super::{
    super::{ModelError, config_file::ConfigFile, encoder::Config},
    Description,
};

/// RoBERTa's settings: the first token's position is `pad_token_id` + 1.
pub fn describe(file: &ConfigFile) -> Result<Description, ModelError> {
    let mut config = Config::bert(file)?;
    let padding = file.number_or("pad_token_id", 1.0)? as u32;
    if padding as usize + 1 >= config.positions {
        let expected = "less than max_position_embeddings - 1";
        return Err(file.unsupported("pad_token_id", padding, expected));
    }
    config.base = "roberta";
    config.padding = Some(padding);
    Ok(config.into())
}
