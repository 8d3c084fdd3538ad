//! The token file of a shard: where every row came from.
//!
//! | tensor | dtype, shape | meaning |
//! |---|---|---|
//! | `sentence_start` | U64 `[sentences + 1]` | first row of each sentence |
//! | `document` | U64 `[sentences]` | index of its document in the dataset |
//! | `text_start` | U64 `[sentences + 1]` | first byte of its text |
//! | `token_id` | U32 `[rows]` | the token |
//! | `position` | U32 `[rows]` | its place in what the model saw, from 0 |
//! | `offset` | U32 `[rows, 2]` | its bytes in the sentence's text |
//! | `text` | U8 `[bytes]` | the sentences' texts, UTF-8 |
//!
//! Dropped tokens (padding, special tokens) have no row, so positions may skip.

use std::{ops::Range, path::Path};

use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};

use super::{
    ShardError, ShardFile,
    format::{self, Metadata, TensorSpec},
};

/// Tokens of a shard under construction, or read back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    sentence_start: Vec<u64>,
    document: Vec<u64>,
    text_start: Vec<u64>,
    token_id: Vec<u32>,
    position: Vec<u32>,
    offset: Vec<[u32; 2]>,
    text: Vec<u8>,
}

/// One kept token of a sentence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// Its id in the tokenizer.
    pub id: u32,
    /// Its place in what the model saw, from 0, special tokens counted.
    pub position: u32,
    /// Its bytes in the sentence's text.
    pub offset: [u32; 2],
}

impl Tokens {
    /// No sentences yet.
    pub fn new() -> Self {
        Self { sentence_start: vec![0], text_start: vec![0], ..Self::default() }
    }

    /// Sentences with at least one row.
    pub fn sentences(&self) -> usize {
        self.document.len()
    }

    /// Rows so far.
    pub fn rows(&self) -> usize {
        self.token_id.len()
    }

    /// Bytes of the file's payload.
    pub fn bytes(&self) -> u64 {
        let starts = size_of_val(&*self.sentence_start) + size_of_val(&*self.text_start);
        let rows = size_of_val(&*self.token_id)
            + size_of_val(&*self.position)
            + size_of_val(&*self.offset);
        (starts + size_of_val(&*self.document) + rows + self.text.len()) as u64
    }

    /// Appends a sentence; one without kept tokens leaves no trace.
    pub fn push(&mut self, document: u64, text: &str, kept: impl IntoIterator<Item = Token>) {
        let before = self.rows();
        for token in kept {
            self.token_id.push(token.id);
            self.position.push(token.position);
            self.offset.push(token.offset);
        }
        if self.rows() == before {
            return;
        }
        self.document.push(document);
        self.sentence_start.push(self.rows() as u64);
        self.text.extend_from_slice(text.as_bytes());
        self.text_start.push(self.text.len() as u64);
    }

    /// Writes the token file and commits it; `root` is what manifest paths are relative to.
    ///
    /// # Errors
    /// Any I/O error, naming the path.
    pub fn write(
        &self,
        path: &Path,
        root: &Path,
        metadata: &Metadata,
    ) -> Result<ShardFile, ShardError> {
        let (rows, sentences) = (self.rows(), self.sentences());
        let spec = |name, dtype, shape: &[usize]| TensorSpec { name, dtype, shape: shape.to_vec() };
        let tensors: [(TensorSpec<'_>, &[u8]); 7] = [
            (
                spec("sentence_start", Dtype::U64, &[sentences + 1]),
                bytemuck::cast_slice(&self.sentence_start),
            ),
            (spec("document", Dtype::U64, &[sentences]), bytemuck::cast_slice(&self.document)),
            (
                spec("text_start", Dtype::U64, &[sentences + 1]),
                bytemuck::cast_slice(&self.text_start),
            ),
            (spec("token_id", Dtype::U32, &[rows]), bytemuck::cast_slice(&self.token_id)),
            (spec("position", Dtype::U32, &[rows]), bytemuck::cast_slice(&self.position)),
            (spec("offset", Dtype::U32, &[rows, 2]), bytemuck::cast_slice(&self.offset)),
            (spec("text", Dtype::U8, &[self.text.len()]), &self.text),
        ];
        format::write_file(path, &tensors, metadata)?;
        ShardFile::of(path, root)
    }
}

/// A token file opened for reading.
#[derive(Debug)]
pub struct TokenFile {
    tokens: Tokens,
}

impl TokenFile {
    /// Opens and checks a token file: shapes agree, starts ascend, texts are UTF-8.
    ///
    /// # Errors
    /// [`ShardError`] naming the path and what is wrong.
    pub fn open(path: &Path) -> Result<Self, ShardError> {
        let map: Mmap = format::map(path)?;
        let file = format::parse(path, &map)?;
        let tokens = Tokens {
            sentence_start: column(path, &file, "sentence_start")?,
            document: column(path, &file, "document")?,
            text_start: column(path, &file, "text_start")?,
            token_id: column(path, &file, "token_id")?,
            position: column(path, &file, "position")?,
            offset: column(path, &file, "offset")?,
            text: column(path, &file, "text")?,
        };
        check(path, &tokens)?;
        Ok(Self { tokens })
    }

    /// The tokens, to go on adding to.
    pub fn into_tokens(self) -> Tokens {
        self.tokens
    }

    /// Sentences in the file.
    pub fn sentences(&self) -> usize {
        self.tokens.sentences()
    }

    /// Rows in the file.
    pub fn rows(&self) -> usize {
        self.tokens.rows()
    }

    /// The rows of a sentence, within the shard.
    pub fn sentence_rows(&self, sentence: usize) -> Range<usize> {
        self.tokens.sentence_start[sentence] as usize
            ..self.tokens.sentence_start[sentence + 1] as usize
    }

    /// The document a sentence belongs to.
    pub fn document(&self, sentence: usize) -> u64 {
        self.tokens.document[sentence]
    }

    /// The text of a sentence.
    pub fn text(&self, sentence: usize) -> &str {
        let bytes = self.tokens.text_start[sentence] as usize
            ..self.tokens.text_start[sentence + 1] as usize;
        std::str::from_utf8(&self.tokens.text[bytes]).unwrap_or_default()
    }

    /// The token of a row.
    pub fn token(&self, row: usize) -> Token {
        let t = &self.tokens;
        Token { id: t.token_id[row], position: t.position[row], offset: t.offset[row] }
    }
}

fn check(path: &Path, t: &Tokens) -> Result<(), ShardError> {
    let bad =
        |reason: &str| ShardError::Format { path: path.to_owned(), reason: reason.to_owned() };
    let ascends = |starts: &[u64], n: usize, end: usize| {
        starts.len() == n + 1
            && starts.first() == Some(&0)
            && starts.last() == Some(&(end as u64))
            && starts.windows(2).all(|w| w[0] <= w[1])
    };
    if !ascends(&t.sentence_start, t.sentences(), t.rows()) {
        return Err(bad("`sentence_start` does not cover the rows"));
    }
    if !ascends(&t.text_start, t.sentences(), t.text.len()) {
        return Err(bad("`text_start` does not cover the text"));
    }
    if t.position.len() != t.rows() || t.offset.len() != t.rows() {
        return Err(bad("`token_id`, `position` and `offset` differ in length"));
    }
    let utf8 = |w: &[u64]| std::str::from_utf8(&t.text[w[0] as usize..w[1] as usize]).is_ok();
    if !t.text_start.windows(2).all(utf8) {
        return Err(bad("`text` is not UTF-8"));
    }
    Ok(())
}

/// A tensor of one dimension.
pub(crate) fn column<T: bytemuck::AnyBitPattern>(
    path: &Path,
    file: &SafeTensors<'_>,
    name: &str,
) -> Result<Vec<T>, ShardError> {
    let bad = |reason: String| ShardError::Format { path: path.to_owned(), reason };
    let view = file.tensor(name).map_err(|e| bad(format!("tensor `{name}`: {e}")))?;
    let chunks = view.data().chunks_exact(size_of::<T>());
    if !chunks.remainder().is_empty() {
        return Err(bad(format!(
            "tensor `{name}` has {:?} elements of another size",
            view.dtype()
        )));
    }
    Ok(chunks.map(bytemuck::pod_read_unaligned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(id: u32, start: u32, end: u32) -> Token {
        Token { id, position: id, offset: [start, end] }
    }

    #[test]
    fn every_row_leads_back_to_its_text() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.safetensors");
        let mut tokens = Tokens::new();
        tokens.push(3, "Ünïcode", [token(7, 0, 2), token(8, 2, 9)]);
        tokens.push(4, "dropped", []);
        tokens.push(9, "two", [token(1, 0, 3)]);
        tokens.write(&path, dir.path(), &vec![]).unwrap();
        let file = TokenFile::open(&path).unwrap();
        assert_eq!((file.sentences(), file.rows()), (2, 3));
        assert_eq!(file.sentence_rows(1), 2..3);
        assert_eq!((file.document(0), file.document(1)), (3, 9));
        assert_eq!((file.text(0), file.text(1)), ("Ünïcode", "two"));
        assert_eq!(file.token(1), token(8, 2, 9));
    }

    #[test]
    fn a_file_of_other_tensors_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.safetensors");
        let spec = TensorSpec { name: "document", dtype: Dtype::U64, shape: vec![1] };
        format::write_file(&path, &[(spec, &[0; 8])], &vec![]).unwrap();
        let error = TokenFile::open(&path).unwrap_err();
        assert!(error.to_string().contains("sentence_start"), "{error}");
    }
}
