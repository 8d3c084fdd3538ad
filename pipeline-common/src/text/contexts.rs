//! From a document to the texts that the model sees, one at a time.
//!
//! A conversation is rendered with the checkpoint's chat template, then a document is one context
//! or as many as it has sentences. Each context keeps its document's number.

use std::path::Path;

use unicode_segmentation::UnicodeSegmentation;

use super::{
    Document, TextError,
    args::{ContextArgs, Split},
    chat::ChatTemplate,
};

/// How documents become contexts.
#[derive(Clone, Debug)]
pub struct Contexts {
    template: Option<ChatTemplate>,
    split: Split,
}

impl Contexts {
    /// For documents as a dataset holds them; the template is the checkpoint's.
    ///
    /// # Errors
    /// As [`ChatTemplate::load`], if conversations are to be rendered.
    pub fn new(args: &ContextArgs, checkpoint: &Path) -> Result<Self, TextError> {
        let template = args.chat().then(|| ChatTemplate::load(checkpoint)).transpose()?;
        Ok(Self { template, split: args.split })
    }

    /// For documents that are rendered already.
    pub fn of_rendered(split: Split) -> Self {
        Self { template: None, split }
    }

    /// The template that renders conversations.
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// The document with its text as the tokenizer gets it.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn render(&self, document: Document) -> Result<Document, TextError> {
        let Some(template) = &self.template else { return Ok(document) };
        let text = template.render(document.index, &document.text)?;
        Ok(Document { text, ..document })
    }

    /// The contexts of a rendered text: itself, or its sentences without the blanks around them.
    pub fn split<'a>(&self, text: &'a str) -> Vec<&'a str> {
        match self.split {
            Split::Document => vec![text],
            Split::Sentence => {
                let sentences = text.split_sentence_bounds().map(str::trim);
                sentences.filter(|sentence| !sentence.is_empty()).collect()
            }
        }
    }

    /// The contexts of a document.
    ///
    /// # Errors
    /// As [`Self::render`].
    pub fn of(&self, document: Document) -> Result<Vec<Document>, TextError> {
        let document = self.render(document)?;
        if self.split == Split::Document {
            return Ok(vec![document]);
        }
        let index = document.index;
        let context = |text: &str| Document { index, text: text.to_owned() };
        Ok(self.split(&document.text).into_iter().map(context).collect())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sentences(text: &str) -> Vec<&str> {
        Contexts::of_rendered(Split::Sentence).split(text)
    }

    #[test]
    fn sentences_end_where_unicode_says() {
        assert_eq!(
            sentences("  It is 3.5 km. \u{201c}Really?\u{201d} she asked.\n\nYes!  "),
            ["It is 3.5 km.", "\u{201c}Really?\u{201d}", "she asked.", "Yes!"]
        );
        assert_eq!(
            sentences("Zażółć gęślą jaźń. 你好。再见。"),
            ["Zażółć gęślą jaźń.", "你好。", "再见。"]
        );
        assert!(sentences(" \n\t").is_empty() && sentences("").is_empty());
    }

    proptest! {
        /// Nothing but white space is lost, and the order stays.
        #[test]
        fn sentences_are_the_text_but_for_blanks(text in "[a-zA-Z .!?\n\"]{0,80}") {
            let dense = |text: &str| text.split_whitespace().collect::<String>();
            prop_assert_eq!(dense(&sentences(&text).concat()), dense(&text));
        }
    }
}
