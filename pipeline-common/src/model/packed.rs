//! Sentences back to back: the shape of everything the model computes.

use super::ModelError;

/// A ragged batch without padding: `rows` tokens, sentence `i` at rows `starts[i]..starts[i + 1]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed {
    /// Token ids of all sentences.
    pub ids: Vec<u32>,
    /// Row where each sentence begins, and the number of rows at the end.
    pub starts: Vec<usize>,
}

impl Packed {
    /// Packs sentences in the order given.
    pub fn new<S: AsRef<[u32]>>(sentences: impl IntoIterator<Item = S>) -> Self {
        let mut packed = Self { ids: Vec::new(), starts: vec![0] };
        for sentence in sentences {
            packed.ids.extend_from_slice(sentence.as_ref());
            packed.starts.push(packed.ids.len());
        }
        packed
    }

    /// Number of tokens.
    pub fn rows(&self) -> usize {
        self.ids.len()
    }

    /// Each token's position in its sentence, from 0.
    pub fn positions(&self) -> Vec<u32> {
        self.starts.windows(2).flat_map(|w| 0..(w[1] - w[0]) as u32).collect()
    }

    /// The longest sentence, in tokens.
    pub fn longest(&self) -> usize {
        self.starts.windows(2).map(|w| w[1] - w[0]).max().unwrap_or(0)
    }

    /// Checks what the kernels rely on, and that the model knows the ids and positions.
    pub(super) fn validate(&self, vocab_size: usize, context: usize) -> Result<(), ModelError> {
        let bad = |message: String| Err(ModelError::Batch { message });
        let ordered = self.starts.windows(2).all(|w| w[0] <= w[1]);
        if self.starts.first() != Some(&0) || self.starts.last() != Some(&self.rows()) || !ordered {
            return bad(format!("sentence starts do not cover the {} rows in order", self.rows()));
        }
        if let Some(id) = self.ids.iter().find(|id| **id as usize >= vocab_size) {
            return bad(format!("token id {id} is outside the model's vocabulary of {vocab_size}"));
        }
        if self.longest() > context {
            return Err(ModelError::TooLong { length: self.longest(), context });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_restart_with_each_sentence() {
        let packed = Packed::new([vec![5, 6, 7], vec![], vec![8]]);
        assert_eq!(packed.starts, [0, 3, 3, 4]);
        assert_eq!(packed.positions(), [0, 1, 2, 0]);
        assert_eq!(packed.longest(), 3);
        packed.validate(9, 3).unwrap();
    }

    #[test]
    fn what_the_kernels_rely_on_is_checked() {
        let good = Packed::new([vec![1, 2]]);
        assert!(good.validate(2, 8).unwrap_err().to_string().contains("token id 2"));
        assert!(matches!(good.validate(9, 1), Err(ModelError::TooLong { length: 2, context: 1 })));
        for starts in [vec![], vec![0], vec![0, 3], vec![1, 2], vec![0, 2, 1, 2]] {
            let bad = Packed { starts: starts.clone(), ..good.clone() };
            assert!(bad.validate(9, 8).is_err(), "{starts:?}");
        }
    }
}
