//! The syntax of `grub.cfg`, which is a small shell's (GNU GRUB 2.12 manual, "Writing full configuration files
//! directly").

use std::iter::Peekable;
use std::str::CharIndices;

/// How many words a script may have. Debian's has 500 and 100 more for each kernel.
const MAX_WORDS: usize = 100_000;

/// How deep blocks and conditions may be in one another.
const MAX_DEPTH: usize = 32;

/// What is wrong with a script.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct Error {
    line: usize,
    reason: String,
}

/// Something to do.
#[derive(Debug)]
pub enum Statement<'s> {
    /// A command with its arguments, and the block behind it if there is one.
    Command(Vec<Word<'s>>, Option<Vec<Statement<'s>>>),
    /// Conditions with what to do if they hold, and what to do if none does.
    If(Vec<(Vec<Statement<'s>>, Vec<Statement<'s>>)>, Vec<Statement<'s>>),
}

/// A word, in parts.
pub type Word<'s> = Vec<Part<'s>>;

/// Part of a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'s> {
    /// As it is.
    Text(&'s str),
    /// A name without quotes, which may be a keyword.
    Bare(&'s str),
    /// The value of a variable; without quotes its spaces part words.
    Variable {
        /// Its name.
        name: &'s str,
        /// Whether it is in double quotes.
        is_quoted: bool,
    },
}

#[derive(Debug, PartialEq)]
enum Token<'s> {
    Word(Word<'s>),
    /// The end of a command.
    End,
    Open,
    Close,
}

/// Reads a script.
pub fn parse(source: &str) -> Result<Vec<Statement<'_>>, Error> {
    let mut parser = Parser { lexer: Lexer::new(source), next: None, words: 0 };
    let statements = parser.statements(0)?;
    match parser.take()? {
        None => Ok(statements),
        Some(Token::Close) => Err(parser.error("there is a } without a {")),
        Some(Token::Word(word)) => Err(parser.error(format!("{} is out of place", keyword(&word)))),
        Some(_) => Err(parser.error("something is out of place")),
    }
}

struct Lexer<'s> {
    source: &'s str,
    characters: Peekable<CharIndices<'s>>,
    line: usize,
}

impl<'s> Lexer<'s> {
    fn new(source: &'s str) -> Self {
        Self { source, characters: source.char_indices().peekable(), line: 1 }
    }

    fn error(&self, reason: impl Into<String>) -> Error {
        Error { line: self.line, reason: reason.into() }
    }

    fn advance(&mut self) -> Option<(usize, char)> {
        let next = self.characters.next();
        if matches!(next, Some((_, '\n'))) {
            self.line += 1;
        }
        next
    }

    fn peek(&mut self) -> Option<char> {
        self.characters.peek().map(|(_, character)| *character)
    }

    /// Where the next character is, in bytes.
    fn at(&mut self) -> usize {
        self.characters.peek().map_or(self.source.len(), |(at, _)| *at)
    }

    fn since(&mut self, begin: usize) -> &'s str {
        let end = self.at();
        self.source.get(begin..end).unwrap_or_default()
    }

    /// Goes on as long as characters are of a kind, and gives them.
    fn while_is(&mut self, is: impl Fn(char) -> bool) -> &'s str {
        let begin = self.at();
        while self.peek().is_some_and(&is) {
            self.advance();
        }
        self.since(begin)
    }

    fn token(&mut self) -> Result<Option<Token<'s>>, Error> {
        loop {
            return Ok(Some(match self.peek() {
                None => return Ok(None),
                Some(' ' | '\t' | '\r') => {
                    self.advance();
                    continue;
                }
                Some('#') => {
                    self.while_is(|character| character != '\n');
                    continue;
                }
                Some('\n' | ';' | '&' | '|') => {
                    self.advance();
                    Token::End
                }
                Some('{') => {
                    self.advance();
                    Token::Open
                }
                Some('}') => {
                    self.advance();
                    Token::Close
                }
                Some(_) => Token::Word(self.word()?),
            }));
        }
    }

    fn word(&mut self) -> Result<Word<'s>, Error> {
        let mut parts = Vec::with_capacity(1);
        while let Some(character) = self.peek() {
            match character {
                ' ' | '\t' | '\r' | '\n' | ';' | '&' | '|' | '{' | '}' => break,
                '\'' => {
                    let line = self.line;
                    self.advance();
                    parts.push(Part::Text(self.while_is(|character| character != '\'')));
                    self.close('\'', line)?;
                }
                '"' => {
                    self.advance();
                    self.double_quoted(&mut parts)?;
                }
                '\\' => self.escaped(&mut parts),
                '$' => parts.push(self.variable(false)?),
                _ => {
                    let end = " \t\r\n;&|{}'\"\\$";
                    parts.push(Part::Bare(self.while_is(|character| !end.contains(character))));
                }
            }
        }
        Ok(parts)
    }

    /// Takes what closes something that was opened in this line.
    fn close(&mut self, quote: char, line: usize) -> Result<(), Error> {
        match self.advance() {
            Some((_, character)) if character == quote => Ok(()),
            _ => Err(Error { line, reason: format!("the closing {quote} is missing") }),
        }
    }

    fn escaped(&mut self, parts: &mut Word<'s>) {
        self.advance();
        let begin = self.at();
        // A line may go on in the next.
        if !matches!(self.advance(), None | Some((_, '\n'))) {
            parts.push(Part::Text(self.since(begin)));
        }
    }

    fn double_quoted(&mut self, parts: &mut Word<'s>) -> Result<(), Error> {
        let line = self.line;
        // Nothing between the quotes is a word too.
        parts.push(Part::Text(""));
        loop {
            let text = self.while_is(|character| !"\"\\$".contains(character));
            if !text.is_empty() {
                parts.push(Part::Text(text));
            }
            match self.peek() {
                Some('$') => parts.push(self.variable(true)?),
                Some('\\') => self.escaped(parts),
                _ => return self.close('"', line),
            }
        }
    }

    fn variable(&mut self, is_quoted: bool) -> Result<Part<'s>, Error> {
        let dollar = self.at();
        self.advance();
        let is_name = |character: char| character.is_ascii_alphanumeric() || character == '_';
        if self.peek() == Some('{') {
            self.advance();
            let name = self.while_is(|character| character != '}' && character != '\n');
            self.close('}', self.line)?;
            return Ok(Part::Variable { name, is_quoted });
        }
        match self.peek() {
            Some('?' | '*' | '#' | '@') => {
                let begin = self.at();
                self.advance();
                Ok(Part::Variable { name: self.since(begin), is_quoted })
            }
            _ => match self.while_is(is_name) {
                "" => Ok(Part::Text(self.since(dollar))),
                name => Ok(Part::Variable { name, is_quoted }),
            },
        }
    }
}

/// The keyword that a word may be.
fn keyword<'s>(word: &Word<'s>) -> &'s str {
    match word.as_slice() {
        [Part::Bare(text)] => text,
        _ => "",
    }
}

struct Parser<'s> {
    lexer: Lexer<'s>,
    /// What was looked at already.
    next: Option<Token<'s>>,
    words: usize,
}

impl<'s> Parser<'s> {
    fn error(&self, reason: impl Into<String>) -> Error {
        self.lexer.error(reason)
    }

    fn take(&mut self) -> Result<Option<Token<'s>>, Error> {
        match self.next.take() {
            Some(token) => Ok(Some(token)),
            None => {
                let token = self.lexer.token()?;
                self.words += match &token {
                    // Of a line that goes on there may be nothing left.
                    Some(Token::Word(parts)) => parts.len().max(1),
                    _ => 0,
                };
                if self.words > MAX_WORDS {
                    return Err(self.error(format!("there are more than {MAX_WORDS} words")));
                }
                Ok(token)
            }
        }
    }

    /// Statements up to what cannot begin one: a `}`, or a keyword that ends or parts something.
    fn statements(&mut self, depth: usize) -> Result<Vec<Statement<'s>>, Error> {
        if depth > MAX_DEPTH {
            return Err(self.error(format!("blocks are in one another more than {MAX_DEPTH} deep")));
        }
        let mut statements = Vec::new();
        while let Some(token) = self.take()? {
            let word = match token {
                Token::End => continue,
                Token::Open => return Err(self.error("there is a { where a command should be")),
                Token::Close => {
                    self.next = Some(token);
                    break;
                }
                Token::Word(word) => word,
            };
            match keyword(&word) {
                "then" | "elif" | "else" | "fi" | "do" | "done" => {
                    self.next = Some(Token::Word(word));
                    break;
                }
                "if" => statements.push(self.condition(depth)?),
                "function" => {
                    // None of those that are generated has to do with what is booted.
                    if !matches!(self.take()?, Some(Token::Word(_)))
                        || !matches!(self.take()?, Some(Token::Open))
                    {
                        return Err(self.error("a function has no name or no {"));
                    }
                    self.block(depth)?;
                }
                "for" | "while" | "until" => {
                    self.statements(depth + 1)?;
                    self.expect("do")?;
                    self.statements(depth + 1)?;
                    self.expect("done")?;
                }
                _ => statements.push(self.command(word, depth)?),
            }
        }
        Ok(statements)
    }

    fn command(&mut self, first: Word<'s>, depth: usize) -> Result<Statement<'s>, Error> {
        let mut words = vec![first];
        loop {
            match self.take()? {
                Some(Token::Word(word)) => words.push(word),
                Some(Token::Open) => {
                    let block = self.block(depth)?;
                    return Ok(Statement::Command(words, Some(block)));
                }
                other => {
                    self.next = other;
                    return Ok(Statement::Command(words, None));
                }
            }
        }
    }

    /// What follows a `{`, with the `}`.
    fn block(&mut self, depth: usize) -> Result<Vec<Statement<'s>>, Error> {
        let line = self.lexer.line;
        let statements = self.statements(depth + 1)?;
        match self.take()? {
            Some(Token::Close) => Ok(statements),
            _ => Err(Error { line, reason: "the } that belongs to this { is missing".into() }),
        }
    }

    fn condition(&mut self, depth: usize) -> Result<Statement<'s>, Error> {
        let mut branches = Vec::new();
        loop {
            let condition = self.statements(depth + 1)?;
            self.expect("then")?;
            branches.push((condition, self.statements(depth + 1)?));
            match self.take()? {
                Some(Token::Word(word)) if keyword(&word) == "elif" => {}
                Some(Token::Word(word)) if keyword(&word) == "else" => {
                    let otherwise = self.statements(depth + 1)?;
                    self.expect("fi")?;
                    return Ok(Statement::If(branches, otherwise));
                }
                other => {
                    self.next = other;
                    self.expect("fi")?;
                    return Ok(Statement::If(branches, Vec::new()));
                }
            }
        }
    }

    fn expect(&mut self, wanted: &str) -> Result<(), Error> {
        match self.take()? {
            Some(Token::Word(word)) if keyword(&word) == wanted => Ok(()),
            _ => Err(self.error(format!("{wanted} is missing"))),
        }
    }
}
