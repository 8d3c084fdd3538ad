//! Text to token ids, with the byte offsets that lead back to the text.
//!
//! `tokenizer.json` decides everything, including which special tokens are added; padding and
//! truncation settings stored in it are dropped, since batches are never padded and the length is
//! the run's setting.

use std::{
    collections::HashSet,
    ops::Range,
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
    /// The tokenizer is another model's.
    #[error("the tokenizer has {found} tokens, but the model's vocabulary is {model}")]
    Vocabulary {
        /// Tokens, added ones included.
        found: usize,
        /// Rows of the model's embedding.
        model: usize,
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
            Self::Vocabulary { .. } => Some("the tokenizer belongs to another model".to_owned()),
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

/// A whole text as tokens, and what a limit would leave out of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uncut {
    /// All of it.
    pub encoding: Encoding,
    /// Tokens that [`Tokenizer::encode_batch`] leaves out; they come before those at the end.
    pub left_out: Range<usize>,
}

/// The tokenizer of a checkpoint.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    special: HashSet<u32>,
    file: PathBuf,
    fingerprint: String,
    adds_special: bool,
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
        Ok(Self { inner, special, file, fingerprint, adds_special: true })
    }

    /// Whether special tokens are added around a text: not where a chat template has written them.
    #[must_use]
    pub fn adding_special(self, adds_special: bool) -> Self {
        Self { adds_special, ..self }
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
        let encodings = self.inner.encode_batch(texts, self.adds_special);
        let encodings = encodings.map_err(|e| self.failed(e))?;
        encodings.iter().map(|e| self.cut(e, max_length)).collect()
    }

    /// Encodes a text without cutting it, and says what [`Self::encode_batch`] would leave out.
    ///
    /// # Errors
    /// As [`Self::encode_batch`].
    pub fn encode_uncut(&self, text: &str, max_length: usize) -> Result<Uncut, TokenizerError> {
        let encoding = self.inner.encode(text, self.adds_special).map_err(|e| self.failed(e))?;
        let left_out = left_out(&encoding, max_length)?;
        Ok(Uncut { encoding: self.part(&encoding, 0..encoding.len()), left_out })
    }

    /// Keeps the special tokens at both ends and as much of the text as fits between them.
    fn cut(
        &self,
        encoding: &tokenizers::Encoding,
        max_length: usize,
    ) -> Result<Encoding, TokenizerError> {
        let out = left_out(encoding, max_length)?;
        Ok(self.part(encoding, (0..out.start).chain(out.end..encoding.len())))
    }

    fn part(
        &self,
        encoding: &tokenizers::Encoding,
        tokens: impl Iterator<Item = usize> + Clone,
    ) -> Encoding {
        let (ids, added) = (encoding.get_ids(), encoding.get_special_tokens_mask());
        Encoding {
            ids: tokens.clone().map(|i| ids[i]).collect(),
            special: tokens
                .clone()
                .map(|i| added[i] == 1 || self.special.contains(&ids[i]))
                .collect(),
            offsets: tokens.map(|i| encoding.get_offsets()[i]).collect(),
        }
    }

    fn failed(&self, error: tokenizers::Error) -> TokenizerError {
        TokenizerError::Encode { path: self.file.clone(), message: error.to_string() }
    }

    /// Refuses the tokenizer of another model, whose ids the embedding does not have.
    ///
    /// # Errors
    /// [`TokenizerError::Vocabulary`].
    pub fn check_vocabulary(&self, model: usize) -> Result<(), TokenizerError> {
        let found = self.vocab_size();
        if found <= model { Ok(()) } else { Err(TokenizerError::Vocabulary { found, model }) }
    }

    /// The id that stands for what the vocabulary does not have, if there is one.
    pub fn unknown(&self) -> Option<u32> {
        #[derive(serde::Deserialize)]
        struct File {
            model: Model,
        }
        #[derive(serde::Deserialize)]
        struct Model {
            unk_token: Option<String>,
            unk_id: Option<u32>,
        }
        let bytes = fs_err::read(&self.file).ok()?;
        let model = serde_json::from_slice::<File>(&bytes).ok()?.model;
        model.unk_id.or_else(|| self.inner.token_to_id(&model.unk_token?))
    }

    /// The pieces as the vocabulary spells them, and the text of ids, special tokens kept.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`] if the decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        self.inner.decode(ids, false).map_err(|e| self.failed(e))
    }

    /// Whether an id is of a special token.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
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

/// What a limit takes out of a text: its end, but not the special tokens added behind it.
fn left_out(
    encoding: &tokenizers::Encoding,
    max_length: usize,
) -> Result<Range<usize>, TokenizerError> {
    let added = encoding.get_special_tokens_mask();
    let n = added.len();
    let head = added.iter().take_while(|m| **m == 1).count();
    let tail = added[head..].iter().rev().take_while(|m| **m == 1).count();
    if max_length <= head + tail {
        return Err(TokenizerError::TooShort { max_length, special: head + tail });
    }
    Ok((n - tail).min(max_length - tail)..n - tail)
}
