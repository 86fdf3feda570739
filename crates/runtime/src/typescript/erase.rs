//! Finds the parts of a program that are only types.

use oxc_ast::ast::*;
use oxc_ast_visit::{Visit, walk};
use oxc_span::{GetSpan, Span};

use super::edits::{Edits, ends};

/// The words before a class member's name that JavaScript does not have.
const MODIFIERS: [&str; 7] = [
    "public",
    "private",
    "protected",
    "readonly",
    "override",
    "abstract",
    "declare",
];

pub(super) struct Eraser<'s> {
    pub(super) edits: Edits<'s>,
    /// The first part that is more than a type: its position, and what it is.
    refused: Option<(usize, &'static str)>,
}

impl<'s> Eraser<'s> {
    pub(super) const fn new(source: &'s str) -> Self {
        Self {
            edits: Edits::new(source),
            refused: None,
        }
    }

    pub(super) fn finish(self) -> Result<String, (usize, &'static str)> {
        match self.refused {
            Some(refused) => Err(refused),
            None => Ok(self.edits.finish()),
        }
    }

    fn refuse(&mut self, span: Span, what: &'static str) {
        let at = span.start as usize;
        if self.refused.is_none_or(|(first, _)| at < first) {
            self.refused = Some((at, what));
        }
    }

    fn erase(&mut self, span: Span) {
        self.edits.erase(span.start as usize, span.end as usize);
    }

    /// Erases a statement or member. A `;` in its place keeps its neighbours apart.
    fn erase_whole(&mut self, span: Span) {
        self.edits
            .erase_to(span.start as usize, span.end as usize, ";");
    }

    /// Erases `: T`, with the mark of an optional or definite name before it.
    fn erase_annotation(&mut self, annotation: &TSTypeAnnotation<'_>) -> (usize, usize) {
        let start = self.edits.back_over_marks(annotation.span.start as usize);
        let end = annotation.span.end as usize;
        self.edits.erase(start, end);
        (start, end)
    }

    /// Erases a `?` or `!` after a name without an annotation.
    fn erase_mark(&mut self, after: u32) {
        let mut at = self.edits.skip_blanks(after as usize);
        // A computed name ends after its bracket.
        if self.edits.slice(at, at + 1) == "]" {
            at = self.edits.skip_blanks(at + 1);
        }
        if matches!(self.edits.slice(at, at + 1), "?" | "!") {
            self.edits.erase(at, at + 1);
        }
    }

    /// Erases one item of a list in braces, with the comma after it.
    fn erase_item(&mut self, span: Span) {
        let next = self.edits.skip_blanks(span.end as usize);
        let comma = self.edits.slice(next, next + 1) == ",";
        let end = if comma { next + 1 } else { span.end as usize };
        self.edits.erase(span.start as usize, end);
    }

    /// Erases `as T` or `satisfies T`. If the next line would now continue the expression, a `;`
    /// keeps it apart, as the type did.
    fn erase_suffix(&mut self, expression: Span, whole: Span) {
        let (start, end) = (expression.end as usize, whole.end as usize);
        self.edits.erase(start, end);
        let next = self.edits.skip_blanks(end);
        let broken = self.edits.slice(end, next).contains('\n');
        if broken && matches!(self.edits.slice(next, next + 1), "(" | "[" | "`") {
            self.edits.insert(end, ";");
        }
    }

    fn modifiers(&mut self, member: Span, key: u32) {
        let (start, end) = (member.start as usize, key as usize);
        let mut at = start;
        while at < end {
            at = self.edits.skip_blanks(at);
            let rest = self.edits.slice(at, end);
            let length = rest
                .find(|c: char| !c.is_ascii_alphabetic())
                .unwrap_or(rest.len());
            if MODIFIERS.contains(&&rest[..length]) {
                // The preceding code must not continue with the rest of the member.
                match at == start {
                    true => self.edits.erase_to(at, at + length, ";"),
                    false => self.edits.erase(at, at + length),
                }
            }
            at += length.max(1);
        }
    }

    /// Whether a declaration is only a type, or is refused.
    fn only_type(&mut self, declaration: &Declaration<'_>) -> bool {
        match declaration {
            Declaration::TSTypeAliasDeclaration(_) | Declaration::TSInterfaceDeclaration(_) => true,
            Declaration::VariableDeclaration(it) => it.declare,
            // A function without a body is one of several signatures.
            Declaration::FunctionDeclaration(it) => it.declare || it.body.is_none(),
            Declaration::ClassDeclaration(it) => it.declare,
            Declaration::TSEnumDeclaration(it) if it.declare => true,
            Declaration::TSEnumDeclaration(it) => {
                self.refuse(it.span, "an enum");
                true
            }
            Declaration::TSExternalModuleDeclaration(_) | Declaration::TSGlobalDeclaration(_) => {
                true
            }
            Declaration::TSNamespaceDeclaration(it) if it.declare => true,
            Declaration::TSNamespaceDeclaration(it) => {
                self.refuse(it.span, "a namespace");
                true
            }
            Declaration::TSImportEqualsDeclaration(it) => {
                let kind = it.import_kind;
                if kind == ImportOrExportKind::Value {
                    self.refuse(it.span, "import =");
                }
                true
            }
        }
    }

    fn gone(&mut self, statement: &Statement<'_>) -> bool {
        if let Some(declaration) = statement.as_declaration() {
            return self.only_type(declaration);
        }
        match statement {
            Statement::ImportDeclaration(it) => it.import_kind == ImportOrExportKind::Type,
            Statement::ExportAllDeclaration(it) => it.export_kind == ImportOrExportKind::Type,
            Statement::ExportNamedDeclaration(it) => it.export_kind == ImportOrExportKind::Type,
            Statement::ExportFromDeclaration(it) => it.export_kind == ImportOrExportKind::Type,
            Statement::ExportDeclaration(it) => self.only_type(&it.declaration),
            Statement::ExportDefaultDeclaration(it) => match &it.declaration {
                ExportDefaultDeclarationKind::TSInterfaceDeclaration(_) => true,
                ExportDefaultDeclarationKind::FunctionDeclaration(it) => it.body.is_none(),
                _ => false,
            },
            Statement::TSExportAssignment(it) => {
                self.refuse(it.span, "export =");
                true
            }
            Statement::TSNamespaceExportDeclaration(_) => true,
            _ => false,
        }
    }

    fn erase_this(&mut self, this: &TSThisParameter<'_>) {
        self.erase_item(this.span);
    }
}

impl<'a> Visit<'a> for Eraser<'_> {
    fn visit_statement(&mut self, it: &Statement<'a>) {
        match self.gone(it) {
            true => self.erase_whole(it.span()),
            false => walk::walk_statement(self, it),
        }
    }

    fn visit_ts_type_annotation(&mut self, it: &TSTypeAnnotation<'a>) {
        self.erase_annotation(it);
    }

    fn visit_ts_type_parameter_declaration(&mut self, it: &TSTypeParameterDeclaration<'a>) {
        self.erase(it.span);
    }

    fn visit_ts_type_parameter_instantiation(&mut self, it: &TSTypeParameterInstantiation<'a>) {
        self.erase(it.span);
    }

    fn visit_ts_as_expression(&mut self, it: &TSAsExpression<'a>) {
        self.visit_expression(&it.expression);
        self.erase_suffix(it.expression.span(), it.span);
    }

    fn visit_ts_satisfies_expression(&mut self, it: &TSSatisfiesExpression<'a>) {
        self.visit_expression(&it.expression);
        self.erase_suffix(it.expression.span(), it.span);
    }

    fn visit_ts_non_null_expression(&mut self, it: &TSNonNullExpression<'a>) {
        self.visit_expression(&it.expression);
        let end = it.span.end as usize;
        self.edits.erase(end - 1, end);
    }

    fn visit_ts_type_assertion(&mut self, it: &TSTypeAssertion<'a>) {
        // With parentheses, `=> <T>{}` stays an object, and a line end after `return` does no harm.
        self.edits.replace(
            it.span.start as usize,
            it.expression.span().start as usize,
            "(",
        );
        self.visit_expression(&it.expression);
        self.edits.insert(it.span.end as usize, ")");
    }

    fn visit_decorator(&mut self, it: &Decorator<'a>) {
        self.refuse(it.span, "a decorator");
    }

    fn visit_ts_this_parameter(&mut self, it: &TSThisParameter<'a>) {
        self.erase_this(it);
    }

    fn visit_formal_parameter(&mut self, it: &FormalParameter<'a>) {
        if it.accessibility.is_some() || it.readonly || it.r#override {
            self.refuse(it.span, "a parameter that declares a property");
        }
        if it.optional && it.type_annotation.is_none() {
            self.erase_mark(it.pattern.span().end);
        }
        walk::walk_formal_parameter(self, it);
    }

    fn visit_variable_declarator(&mut self, it: &VariableDeclarator<'a>) {
        if it.definite && it.type_annotation.is_none() {
            self.erase_mark(it.id.span().end);
        }
        walk::walk_variable_declarator(self, it);
    }

    fn visit_arrow_function_expression(&mut self, it: &ArrowFunctionExpression<'a>) {
        let inside = it.params.span.start as usize + 1;
        if let Some(types) = &it.type_parameters {
            let (start, end) = (types.span.start as usize, types.span.end as usize);
            let lines = ends(self.edits.slice(start, end));
            if lines.is_empty() {
                self.edits.erase(start, end);
            } else {
                // There must be no line end between `return` or `async` and the code after it.
                let at = self.edits.skip_blanks(end);
                self.edits.replace_without_lines(start, at);
                self.edits.insert(inside, ends(self.edits.slice(start, at)));
            }
        }
        self.visit_formal_parameters(&it.params);
        if let Some(answer) = &it.return_type {
            let (close, end) = (it.params.span.end as usize, answer.span.end as usize);
            if self.edits.slice(close, end).contains('\n') {
                // There must be no line end before `=>`, so the parenthesis closes after the type.
                self.edits.erase(close - 1, close);
                self.edits.erase(close, end);
                self.edits.insert(end, ")");
            } else {
                self.edits.erase(close, end);
            }
        }
        self.visit_arrow_function_body(&it.body);
    }

    fn visit_class(&mut self, it: &Class<'a>) {
        for decorator in &it.decorators {
            self.visit_decorator(decorator);
        }
        if it.r#abstract {
            let at = it.span.start as usize;
            if self.edits.slice(at, at + 8) == "abstract" {
                self.edits.erase(at, at + 8);
            }
        }
        if let Some(types) = &it.type_parameters {
            self.erase(types.span);
        }
        let mut head = it.type_parameters.as_ref().map(|types| types.span.end);
        head = head.or_else(|| it.id.as_ref().map(|id| id.span.end));
        if let Some(heritage) = &it.heritage {
            self.visit_expression(&heritage.expression);
            head = Some(heritage.expression.span().end);
            if let Some(types) = &heritage.type_arguments {
                self.erase(types.span);
                head = Some(types.span.end);
            }
        }
        if let Some(last) = it.implements.last() {
            // The search begins after the word `class`.
            let from = head.unwrap_or(it.span.start + 5) as usize;
            let text = self.edits.slice(from, last.span.end as usize);
            let from = from + text.find("implements").unwrap_or(0);
            self.edits.erase(from, last.span.end as usize);
        }
        self.visit_class_body(&it.body);
    }

    fn visit_class_element(&mut self, it: &ClassElement<'a>) {
        match it {
            ClassElement::TSIndexSignature(it) => self.erase_whole(it.span),
            other => walk::walk_class_element(self, other),
        }
    }

    fn visit_method_definition(&mut self, it: &MethodDefinition<'a>) {
        if it.value.body.is_none() {
            return self.erase_whole(it.span);
        }
        self.modifiers(it.span, it.key.span().start);
        if it.optional {
            self.erase_mark(it.key.span().end);
        }
        walk::walk_method_definition(self, it);
    }

    fn visit_property_definition(&mut self, it: &PropertyDefinition<'a>) {
        if it.declare || it.r#type == PropertyDefinitionType::TSAbstractPropertyDefinition {
            return self.erase_whole(it.span);
        }
        for decorator in &it.decorators {
            self.visit_decorator(decorator);
        }
        self.modifiers(it.span, it.key.span().start);
        self.visit_property_key(&it.key);
        match (&it.type_annotation, &it.value) {
            (Some(annotation), None) => {
                // `get: T` must not become the beginning of a getter.
                let start = self.edits.back_over_marks(annotation.span.start as usize);
                self.edits
                    .erase_to(start, annotation.span.end as usize, ";");
            }
            (Some(annotation), Some(_)) => {
                self.erase_annotation(annotation);
            }
            (None, _) if it.optional || it.definite => self.erase_mark(it.key.span().end),
            (None, _) => {}
        }
        if let Some(value) = &it.value {
            self.visit_expression(value);
        }
    }

    fn visit_accessor_property(&mut self, it: &AccessorProperty<'a>) {
        self.refuse(it.span, "an accessor");
    }

    fn visit_import_specifier(&mut self, it: &ImportSpecifier<'a>) {
        if it.import_kind == ImportOrExportKind::Type {
            self.erase_item(it.span);
        }
    }

    fn visit_export_specifier(&mut self, it: &ExportSpecifier<'a>) {
        if it.export_kind == ImportOrExportKind::Type {
            self.erase_item(it.span);
        }
    }

    fn visit_jsx_element(&mut self, it: &JSXElement<'a>) {
        self.element(it);
    }

    fn visit_jsx_fragment(&mut self, it: &JSXFragment<'a>) {
        self.fragment(it);
    }
}
