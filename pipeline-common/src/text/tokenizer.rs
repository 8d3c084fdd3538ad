//! Text to token ids, with the byte offsets that lead back to the text.
//!
//! `tokenizer.json` decides everything, including which special tokens are added; padding and
//! truncation settings stored in it are dropped, since batches are never padded and the length is
//! the run's setting.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

use thiserror::Error;

use crate::stage::{Classify, Kind};

/// Why text could not be turned into tokens.
#[derive(Debug, Error)]
pub enum TokenizerError {
    /// The checkpoint has no `tokenizer.json`.
    #[error("no `tokenizer.json` in `{}`", dir.display())]
    Missing {
        /// The checkpoint's directory.
        dir: PathBuf,
    },
    /// `tokenizer.json` cannot be read or understood.
    #[error("tokenizer `{}`: {message}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// No room for text between the special tokens.
    #[error(
        "MAX_LENGTH {max_length} leaves no room beside the {special} special tokens that the tokenizer adds"
    )]
    TooShort {
        /// The setting.
        max_length: usize,
        /// Special tokens that the tokenizer adds to each sentence.
        special: usize,
    },
    /// The tokenizer refused a text.
    #[error("tokenizer `{}` failed: {message}", path.display())]
    Encode {
        /// The file.
        path: PathBuf,
        /// Its own words.
        message: String,
    },
}

impl Classify for TokenizerError {
    fn kind(&self) -> Kind {
        match self {
            Self::TooShort { .. } => Kind::Usage,
            _ => Kind::Input,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Missing { .. } => Some(
                "the checkpoint must hold a fast tokenizer; transformers writes one with \
                 AutoTokenizer.from_pretrained(..).save_pretrained(..)"
                    .to_owned(),
            ),
            Self::TooShort { .. } => Some("raise MAX_LENGTH".to_owned()),
            _ => None,
        }
    }
}

/// One sentence as tokens; the three lists are equally long.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoding {
    /// Token ids, special tokens included.
    pub ids: Vec<u32>,
    /// Whether the token is special: added by the tokenizer, or written in the text.
    pub special: Vec<bool>,
    /// The token's bytes in the text, begin and end; empty for tokens that were added.
    pub offsets: Vec<(usize, usize)>,
}

/// The tokenizer of a checkpoint.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    special: HashSet<u32>,
    file: PathBuf,
    fingerprint: String,
}

impl Tokenizer {
    /// Reads `tokenizer.json` of a checkpoint's directory.
    ///
    /// # Errors
    /// [`TokenizerError::Missing`] and [`TokenizerError::Invalid`].
    pub fn load(dir: &Path) -> Result<Self, TokenizerError> {
        let file = dir.join("tokenizer.json");
        if !file.is_file() {
            return Err(TokenizerError::Missing { dir: dir.to_owned() });
        }
        let invalid = |message: String| TokenizerError::Invalid { path: file.clone(), message };
        let bytes = fs_err::read(&file).map_err(|e| invalid(e.to_string()))?;
        let mut inner =
            tokenizers::Tokenizer::from_bytes(&bytes).map_err(|e| invalid(e.to_string()))?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| invalid(e.to_string()))?;
        let added = inner.get_added_tokens_decoder();
        let special = added.iter().filter(|(_, t)| t.special).map(|(id, _)| *id).collect();
        let fingerprint = blake3::hash(&bytes).to_hex().to_string();
        Ok(Self { inner, special, file, fingerprint })
    }

    /// Encodes texts, each cut to `max_length` tokens including the special tokens around it.
    ///
    /// # Errors
    /// [`TokenizerError::TooShort`] if the special tokens alone fill `max_length`;
    /// [`TokenizerError::Encode`] if the tokenizer has no token for a part of the text.
    pub fn encode_batch(
        &self,
        texts: &[String],
        max_length: usize,
    ) -> Result<Vec<Encoding>, TokenizerError> {
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let encodings = self.inner.encode_batch(texts, true).map_err(|e| {
            TokenizerError::Encode { path: self.file.clone(), message: e.to_string() }
        })?;
        encodings.iter().map(|e| self.cut(e, max_length)).collect()
    }

    /// Keeps the special tokens at both ends and as much of the text as fits between them.
    fn cut(
        &self,
        encoding: &tokenizers::Encoding,
        max_length: usize,
    ) -> Result<Encoding, TokenizerError> {
        let added = encoding.get_special_tokens_mask();
        let n = added.len();
        let head = added.iter().take_while(|m| **m == 1).count();
        let tail = added[head..].iter().rev().take_while(|m| **m == 1).count();
        if max_length <= head + tail {
            return Err(TokenizerError::TooShort { max_length, special: head + tail });
        }
        let text_end = (n - tail).min(max_length - tail);
        let kept = || (0..text_end).chain(n - tail..n);
        let ids = encoding.get_ids();
        Ok(Encoding {
            ids: kept().map(|i| ids[i]).collect(),
            special: kept().map(|i| added[i] == 1 || self.special.contains(&ids[i])).collect(),
            offsets: kept().map(|i| encoding.get_offsets()[i]).collect(),
        })
    }

    /// The pieces as the vocabulary spells them, and the text of ids, special tokens kept.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`] if the decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        self.inner
            .decode(ids, false)
            .map_err(|e| TokenizerError::Encode { path: self.file.clone(), message: e.to_string() })
    }

    /// The piece of one id as the vocabulary spells it.
    pub fn piece(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Number of ids, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// BLAKE3 of `tokenizer.json`, in hexadecimal.
    pub fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }

    /// The path of `tokenizer.json`.
    pub fn file(&self) -> &Path {
        &self.file
    }
}
