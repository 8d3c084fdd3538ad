//! The pickles of `torch.save`, read by an interpreter that can build dictionaries of tensors and
//! plain values and nothing else: no code is looked up or run, and a global name that is not on
//! its list is an error that names it.
//!
//! Values live in an arena and refer to each other by number, so that memory is bounded by the
//! pickle's own length and cycles do no harm.

use std::collections::{BTreeMap, HashMap};

use safetensors::Dtype;

use super::Scalar;

/// Longer pickles are refused; a state dictionary's has about 200 bytes a tensor.
const LONGEST: usize = 16 << 20;

/// Why a pickle was not read.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum PickleError {
    /// It ends in the middle.
    #[error("the pickle ends at byte {at}, in the middle")]
    Truncated {
        /// Where.
        at: usize,
    },
    /// An instruction that no dictionary of tensors needs.
    #[error("instruction {code:#04x} of the pickle, at byte {at}, is not supported")]
    Instruction {
        /// The instruction.
        code: u8,
        /// Where.
        at: usize,
    },
    /// A class or function that is not on the list.
    #[error("the pickle asks for `{name}`, which is not run")]
    Global {
        /// Its module and name.
        name: String,
    },
    /// Instructions that do not fit each other.
    #[error("the pickle is damaged at byte {at}: {what}")]
    Structure {
        /// What is wrong.
        what: &'static str,
        /// Where.
        at: usize,
    },
}

/// A tensor as the pickle describes it; its elements are in a file of their own.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// The file's name below `data/`.
    pub key: String,
    /// Type of the elements.
    pub dtype: Dtype,
    /// The first element.
    pub offset: usize,
    /// Axes.
    pub shape: Vec<usize>,
    /// Elements from one index to the next.
    pub strides: Vec<usize>,
}

/// What a key of the dictionary stands for.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// A tensor.
    Tensor(Stored),
    /// Anything else.
    Value(Scalar),
}

type Id = usize;

/// What may be looked up by name.
#[derive(Clone, Copy, Debug)]
enum Callable {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(Dtype),
}

const CALLABLES: [(&str, &str, Callable); 13] = [
    ("collections", "OrderedDict", Callable::OrderedDict),
    ("torch._utils", "_rebuild_tensor_v2", Callable::RebuildTensor),
    ("torch._utils", "_rebuild_parameter", Callable::RebuildParameter),
    ("torch", "FloatStorage", Callable::Storage(Dtype::F32)),
    ("torch", "DoubleStorage", Callable::Storage(Dtype::F64)),
    ("torch", "HalfStorage", Callable::Storage(Dtype::F16)),
    ("torch", "BFloat16Storage", Callable::Storage(Dtype::BF16)),
    ("torch", "LongStorage", Callable::Storage(Dtype::I64)),
    ("torch", "IntStorage", Callable::Storage(Dtype::I32)),
    ("torch", "ShortStorage", Callable::Storage(Dtype::I16)),
    ("torch", "CharStorage", Callable::Storage(Dtype::I8)),
    ("torch", "ByteStorage", Callable::Storage(Dtype::U8)),
    ("torch", "BoolStorage", Callable::Storage(Dtype::BOOL)),
];

#[derive(Clone, Debug)]
enum Node<'a> {
    None,
    Int(i64),
    Float(f64),
    Text(&'a str),
    /// A tuple or a list.
    Sequence(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Callable(Callable),
    Storage {
        dtype: Dtype,
        key: &'a str,
    },
    Tensor(Stored),
}

struct Machine<'a> {
    input: &'a [u8],
    at: usize,
    nodes: Vec<Node<'a>>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

/// The items of the dictionary that a pickle holds; those of a dictionary within it are named
/// `outer.inner`.
///
/// # Errors
/// [`PickleError`] for all that is no dictionary of tensors and plain values.
pub fn read(input: &[u8]) -> Result<BTreeMap<String, Item>, PickleError> {
    if input.len() > LONGEST {
        return Err(PickleError::Structure { what: "it is too long", at: LONGEST });
    }
    let mut machine =
        Machine { input, at: 0, nodes: vec![], stack: vec![], marks: vec![], memo: HashMap::new() };
    while machine.step()? {}
    let root = machine.pop()?;
    machine.items(root)
}

impl<'a> Machine<'a> {
    /// One instruction; false after the last.
    fn step(&mut self) -> Result<bool, PickleError> {
        let at = self.at;
        match self.byte()? {
            b'.' => return Ok(false),
            0x80 => {
                self.byte()?;
            }
            0x95 => {
                self.take(8)?;
            }
            code @ (b'q' | b'r' | 0x94 | b'h' | b'j') => self.remember(code)?,
            code @ (b'(' | b')' | b']' | b'}' | b'0' | b't' | 0x85..=0x87) => self.group(code)?,
            code @ (b'a' | b'e' | b's' | b'u') => self.fill(code)?,
            code @ (b'c' | 0x93) => self.global(code)?,
            b'Q' => self.persistent()?,
            b'R' => self.reduce()?,
            b'b' => self.build()?,
            code => {
                let node = self.plain(code)?.ok_or(PickleError::Instruction { code, at })?;
                self.push(node);
            }
        }
        Ok(true)
    }

    /// A plain value; none where the instruction is for something else.
    fn plain(&mut self, code: u8) -> Result<Option<Node<'a>>, PickleError> {
        Ok(Some(match code {
            b'N' => Node::None,
            0x88 => Node::Int(1),
            0x89 => Node::Int(0),
            b'K' => Node::Int(self.byte()?.into()),
            b'M' => Node::Int(u16::from_le_bytes(self.array()?).into()),
            b'J' => Node::Int(i32::from_le_bytes(self.array()?).into()),
            b'G' => Node::Float(f64::from_be_bytes(self.array()?)),
            0x8a => {
                let length = usize::from(self.byte()?);
                let bytes = self.take(length)?;
                let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
                let mut whole = [if negative { 0xff } else { 0 }; 8];
                let room = whole.get_mut(..length);
                room.ok_or_else(|| self.damaged("a long integer"))?.copy_from_slice(bytes);
                Node::Int(i64::from_le_bytes(whole))
            }
            0x8c => {
                let length = usize::from(self.byte()?);
                Node::Text(self.text(length)?)
            }
            b'X' => {
                let length = u32::from_le_bytes(self.array()?) as usize;
                Node::Text(self.text(length)?)
            }
            _ => return Ok(None),
        }))
    }

    fn remember(&mut self, code: u8) -> Result<(), PickleError> {
        let number = match code {
            b'q' | b'h' => self.byte()?.into(),
            b'r' | b'j' => u32::from_le_bytes(self.array()?),
            _ => self.memo.len() as u32,
        };
        if matches!(code, b'h' | b'j') {
            let id = self.memo.get(&number).copied();
            self.stack.push(id.ok_or_else(|| self.damaged("nothing is remembered there"))?);
        } else {
            let top = self.top()?;
            self.memo.insert(number, top);
        }
        Ok(())
    }

    fn group(&mut self, code: u8) -> Result<(), PickleError> {
        let node = match code {
            b'(' => {
                self.marks.push(self.stack.len());
                return Ok(());
            }
            b'0' => {
                self.pop()?;
                return Ok(());
            }
            b')' | b']' => Node::Sequence(vec![]),
            b'}' => Node::Dict(vec![]),
            b't' => Node::Sequence(self.since_mark()?),
            count => {
                let begin = self.stack.len().checked_sub(usize::from(count - 0x84));
                let begin = begin.filter(|begin| self.marks.last().is_none_or(|m| m <= begin));
                Node::Sequence(
                    self.stack.split_off(begin.ok_or_else(|| self.damaged("a short tuple"))?),
                )
            }
        };
        self.push(node);
        Ok(())
    }

    /// Adds items to the list or dictionary below them.
    fn fill(&mut self, code: u8) -> Result<(), PickleError> {
        let items = match code {
            b'a' => vec![self.pop()?],
            b's' => {
                let value = self.pop()?;
                vec![self.pop()?, value]
            }
            _ => self.since_mark()?,
        };
        let (list, top) = (matches!(code, b'a' | b'e'), self.top()?);
        match &mut self.nodes[top] {
            Node::Sequence(into) if list => into.extend(items),
            Node::Dict(into) if !list && items.len().is_multiple_of(2) => {
                into.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])));
            }
            _ => return Err(self.damaged("items without a container")),
        }
        Ok(())
    }

    fn global(&mut self, code: u8) -> Result<(), PickleError> {
        let (module, name) = if code == b'c' {
            (self.line()?, self.line()?)
        } else {
            let name = self.pop_text()?;
            (self.pop_text()?, name)
        };
        let known = CALLABLES.iter().find(|(m, n, _)| (*m, *n) == (module, name));
        let Some((_, _, callable)) = known else {
            let name: String = format!("{module}.{name}").chars().take(200).collect();
            return Err(PickleError::Global { name });
        };
        self.push(Node::Callable(*callable));
        Ok(())
    }

    /// `('storage', type, key, device, elements)`.
    fn persistent(&mut self) -> Result<(), PickleError> {
        let id = self.pop()?;
        let Node::Sequence(parts) = &self.nodes[id] else {
            return Err(self.damaged("a storage that is no tuple"));
        };
        let parts: Vec<&Node<'a>> = parts.iter().map(|id| &self.nodes[*id]).collect();
        let [
            Node::Text("storage"),
            Node::Callable(Callable::Storage(dtype)),
            Node::Text(key),
            Node::Text(_),
            Node::Int(_),
        ] = parts[..]
        else {
            return Err(self.damaged("a storage of another form"));
        };
        let node = Node::Storage { dtype: *dtype, key };
        self.push(node);
        Ok(())
    }

    fn reduce(&mut self) -> Result<(), PickleError> {
        let (arguments, callable) = (self.pop()?, self.pop()?);
        let (Node::Sequence(arguments), Node::Callable(callable)) =
            (&self.nodes[arguments], &self.nodes[callable])
        else {
            return Err(self.damaged("a call without function or arguments"));
        };
        match callable {
            Callable::OrderedDict if arguments.is_empty() => self.push(Node::Dict(vec![])),
            Callable::RebuildParameter if !arguments.is_empty() => self.stack.push(arguments[0]),
            Callable::RebuildTensor => {
                let tensor = self.tensor(arguments);
                let tensor = tensor.ok_or_else(|| self.damaged("a tensor of another form"))?;
                self.push(Node::Tensor(tensor));
            }
            _ => return Err(self.damaged("a call of another form")),
        }
        Ok(())
    }

    /// `_rebuild_tensor_v2(storage, offset, shape, strides, ...)`.
    fn tensor(&self, arguments: &[Id]) -> Option<Stored> {
        let [storage, offset, shape, strides] = *arguments.first_chunk()?;
        let Node::Storage { dtype, key } = self.nodes[storage] else { return None };
        let size = |id: Id| match self.nodes[id] {
            Node::Int(n) => usize::try_from(n).ok(),
            _ => None,
        };
        let sizes = |id: Id| match &self.nodes[id] {
            Node::Sequence(ids) if ids.len() <= 8 => {
                ids.iter().map(|id| size(*id)).collect::<Option<Vec<usize>>>()
            }
            _ => None,
        };
        let (shape, strides) = (sizes(shape)?, sizes(strides)?);
        (shape.len() == strides.len()).then_some(())?;
        Some(Stored { key: key.to_owned(), dtype, offset: size(offset)?, shape, strides })
    }

    /// The state of a dictionary is what torch notes about versions.
    fn build(&mut self) -> Result<(), PickleError> {
        self.pop()?;
        match self.nodes[self.top()?] {
            Node::Dict(_) => Ok(()),
            _ => Err(self.damaged("an object with a state")),
        }
    }

    fn items(&self, root: Id) -> Result<BTreeMap<String, Item>, PickleError> {
        let Node::Dict(pairs) = &self.nodes[root] else {
            return Err(self.damaged("it holds no dictionary"));
        };
        let mut items = BTreeMap::new();
        for (key, value) in pairs {
            let Node::Text(key) = self.nodes[*key] else {
                return Err(self.damaged("a key is no text"));
            };
            match &self.nodes[*value] {
                Node::Dict(inner) => {
                    for (name, value) in inner {
                        if let Node::Text(name) = self.nodes[*name] {
                            items.insert(format!("{key}.{name}"), self.item(*value));
                        }
                    }
                }
                _ => {
                    items.insert(key.to_owned(), self.item(*value));
                }
            }
        }
        Ok(items)
    }

    fn item(&self, id: Id) -> Item {
        Item::Value(match &self.nodes[id] {
            Node::Tensor(stored) => return Item::Tensor(stored.clone()),
            Node::Int(n) => Scalar::Int(*n),
            Node::Float(x) => Scalar::Float(*x),
            Node::Text(text) => Scalar::Text((*text).to_owned()),
            _ => Scalar::Other,
        })
    }

    fn push(&mut self, node: Node<'a>) {
        self.stack.push(self.nodes.len());
        self.nodes.push(node);
    }

    fn top(&self) -> Result<Id, PickleError> {
        self.stack.last().copied().ok_or_else(|| self.damaged("the stack is empty"))
    }

    fn pop(&mut self) -> Result<Id, PickleError> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_text(&mut self) -> Result<&'a str, PickleError> {
        let id = self.pop()?;
        match self.nodes[id] {
            Node::Text(text) => Ok(text),
            _ => Err(self.damaged("a name that is no text")),
        }
    }

    fn since_mark(&mut self) -> Result<Vec<Id>, PickleError> {
        let mark = self.marks.pop().filter(|mark| *mark <= self.stack.len());
        Ok(self.stack.split_off(mark.ok_or_else(|| self.damaged("a mark is missing"))?))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], PickleError> {
        let bytes = self.input[self.at..].get(..length);
        let bytes = bytes.ok_or(PickleError::Truncated { at: self.input.len() })?;
        self.at += length;
        Ok(bytes)
    }

    fn byte(&mut self) -> Result<u8, PickleError> {
        Ok(self.take(1)?[0])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], PickleError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn text(&mut self, length: usize) -> Result<&'a str, PickleError> {
        let bytes = self.take(length)?;
        std::str::from_utf8(bytes).map_err(|_| self.damaged("a text is not UTF-8"))
    }

    fn line(&mut self) -> Result<&'a str, PickleError> {
        let length = self.input[self.at..].iter().position(|b| *b == b'\n');
        let length = length.ok_or(PickleError::Truncated { at: self.input.len() })?;
        let text = self.text(length)?;
        self.at += 1;
        Ok(text)
    }

    fn damaged(&self, what: &'static str) -> PickleError {
        PickleError::Structure { what, at: self.at }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Never a panic; what is left of the tests is beside the formats of SAEs.
    #[test]
    fn what_is_no_dictionary_of_tensors_is_refused() {
        let global = |name: &str| PickleError::Global { name: name.to_owned() };
        for (pickle, error) in [
            (&b"\x80\x02cposix\nsystem\nX\x04\0\0\0true\x85R."[..], global("posix.system")),
            (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", global("os.system")),
            (b"ctorch\nload\n.", global("torch.load")),
            (b"\x80\x02}", PickleError::Truncated { at: 3 }),
            (b"i", PickleError::Instruction { code: b'i', at: 0 }),
            (b".", PickleError::Structure { what: "the stack is empty", at: 1 }),
            (b"K\x01.", PickleError::Structure { what: "it holds no dictionary", at: 3 }),
            (b"u.", PickleError::Structure { what: "a mark is missing", at: 1 }),
            (b"K\x01(\x85.", PickleError::Structure { what: "a short tuple", at: 4 }),
        ] {
            assert_eq!(read(pickle), Err(error));
        }
    }

    #[test]
    fn a_dictionary_within_itself_does_no_harm() {
        let items = read(b"}q\x00X\x01\0\0\0ah\x00X\x01\0\0\0bK\x05(u.");
        assert!(items.is_err(), "the mark comes too late");
        let items = read(b"}q\x00(X\x01\0\0\0ah\x00X\x01\0\0\0bK\x05u.").unwrap();
        let names: Vec<&String> = items.keys().collect();
        assert_eq!(names, ["a.a", "a.b", "b"]);
        assert_eq!(items["b"], Item::Value(Scalar::Int(5)));
        assert_eq!(items["a.a"], Item::Value(Scalar::Other));
    }
}
