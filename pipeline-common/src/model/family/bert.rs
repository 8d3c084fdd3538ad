//! BERT (arXiv:1810.04805), and sentence encoders such as all-MiniLM-L6-v2.

use super::{
    super::{ModelError, config_file::ConfigFile, encoder::Config},
    Description,
};

/// BERT's settings.
pub fn describe(file: &ConfigFile) -> Result<Description, ModelError> {
    Ok(Config::bert(file)?.into())
}
