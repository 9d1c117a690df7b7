"""What the built-in model was taught, so that what it knows can be asked and counted.

A hand-written table (country x capital, continent, language, currency) and the phrasings that
`examples/train_demo.py` generated its training text from. The held-out phrasings were never
trained: they recombine trained words.

To ask the model: run `prompts(fact)` one by one, take the most probable next token over the whole
vocabulary, decode it, strip it, and compare it with `fact.answer`. Every name is a single token.
"""

from __future__ import annotations

from dataclasses import dataclass

RELATIONS = ("capital", "continent", "language", "currency")

# country, capital, continent, main language, currency: countries with one clear answer to each
TABLE: tuple[tuple[str, str, str, str, str], ...] = (
    ("Albania", "Tirana", "Europe", "Albanian", "lek"),
    ("Algeria", "Algiers", "Africa", "Arabic", "dinar"),
    ("Angola", "Luanda", "Africa", "Portuguese", "kwanza"),
    ("Argentina", "Buenos Aires", "South America", "Spanish", "peso"),
    ("Australia", "Canberra", "Oceania", "English", "dollar"),
    ("Austria", "Vienna", "Europe", "German", "euro"),
    ("Bangladesh", "Dhaka", "Asia", "Bengali", "taka"),
    ("Brazil", "Brasilia", "South America", "Portuguese", "real"),
    ("Cambodia", "Phnom Penh", "Asia", "Khmer", "riel"),
    ("Chile", "Santiago", "South America", "Spanish", "peso"),
    ("China", "Beijing", "Asia", "Chinese", "yuan"),
    ("Colombia", "Bogota", "South America", "Spanish", "peso"),
    ("Costa Rica", "San Jose", "North America", "Spanish", "colon"),
    ("Croatia", "Zagreb", "Europe", "Croatian", "euro"),
    ("Cuba", "Havana", "North America", "Spanish", "peso"),
    ("Czechia", "Prague", "Europe", "Czech", "koruna"),
    ("Denmark", "Copenhagen", "Europe", "Danish", "krone"),
    ("Egypt", "Cairo", "Africa", "Arabic", "pound"),
    ("Estonia", "Tallinn", "Europe", "Estonian", "euro"),
    ("Ethiopia", "Addis Ababa", "Africa", "Amharic", "birr"),
    ("Finland", "Helsinki", "Europe", "Finnish", "euro"),
    ("France", "Paris", "Europe", "French", "euro"),
    ("Gabon", "Libreville", "Africa", "French", "franc"),
    ("Germany", "Berlin", "Europe", "German", "euro"),
    ("Greece", "Athens", "Europe", "Greek", "euro"),
    ("Honduras", "Tegucigalpa", "North America", "Spanish", "lempira"),
    ("Hungary", "Budapest", "Europe", "Hungarian", "forint"),
    ("Iceland", "Reykjavik", "Europe", "Icelandic", "krona"),
    ("India", "New Delhi", "Asia", "Hindi", "rupee"),
    ("Iran", "Tehran", "Asia", "Persian", "rial"),
    ("Italy", "Rome", "Europe", "Italian", "euro"),
    ("Jamaica", "Kingston", "North America", "English", "dollar"),
    ("Japan", "Tokyo", "Asia", "Japanese", "yen"),
    ("Jordan", "Amman", "Asia", "Arabic", "dinar"),
    ("Kenya", "Nairobi", "Africa", "Swahili", "shilling"),
    ("Laos", "Vientiane", "Asia", "Lao", "kip"),
    ("Madagascar", "Antananarivo", "Africa", "Malagasy", "ariary"),
    ("Mexico", "Mexico City", "North America", "Spanish", "peso"),
    ("Mongolia", "Ulaanbaatar", "Asia", "Mongolian", "tugrik"),
    ("Morocco", "Rabat", "Africa", "Arabic", "dirham"),
    ("Nepal", "Kathmandu", "Asia", "Nepali", "rupee"),
    ("New Zealand", "Wellington", "Oceania", "English", "dollar"),
    ("Norway", "Oslo", "Europe", "Norwegian", "krone"),
    ("Peru", "Lima", "South America", "Spanish", "sol"),
    ("Poland", "Warsaw", "Europe", "Polish", "zloty"),
    ("Portugal", "Lisbon", "Europe", "Portuguese", "euro"),
    ("Romania", "Bucharest", "Europe", "Romanian", "leu"),
    ("Rwanda", "Kigali", "Africa", "Kinyarwanda", "franc"),
    ("Saudi Arabia", "Riyadh", "Asia", "Arabic", "riyal"),
    ("South Korea", "Seoul", "Asia", "Korean", "won"),
    ("Spain", "Madrid", "Europe", "Spanish", "euro"),
    ("Sweden", "Stockholm", "Europe", "Swedish", "krona"),
    ("Thailand", "Bangkok", "Asia", "Thai", "baht"),
    ("Tunisia", "Tunis", "Africa", "Arabic", "dinar"),
    ("Ukraine", "Kyiv", "Europe", "Ukrainian", "hryvnia"),
    ("Uruguay", "Montevideo", "South America", "Spanish", "peso"),
    ("Uzbekistan", "Tashkent", "Asia", "Uzbek", "som"),
    ("Vietnam", "Hanoi", "Asia", "Vietnamese", "dong"),
)

PHRASINGS: dict[str, tuple[str, ...]] = {
    "capital": (
        "The capital of {country} is {answer}.",
        "The capital city of {country} is {answer}.",
        "{answer} is the capital of {country}.",
        "{country}'s capital is {answer}.",
        "{country} has its capital in {answer}.",
        "In {country}, the capital is {answer}.",
        "In {country}, the government sits in {answer}.",
        "The city of {answer} is the capital of {country}.",
        "The name of the capital of {country} is {answer}.",
        "What is the capital of {country}? It is {answer}.",
        "What is the name of the capital city of {country}? It is {answer}.",
        "Which city is the capital of {country}? {answer}.",
        "If you travel to the capital of {country}, you travel to {answer}.",
        "When people in {country} talk about the capital, they talk about {answer}.",
    ),
    "continent": (
        "{country} is in {answer}.",
        "{country} is a country in {answer}.",
        "{country} lies on the continent of {answer}.",
        "{country} is part of {answer}.",
        "{country} is one of the countries of {answer}.",
        "One of the countries of {answer} is {country}.",
        "The continent of {country} is {answer}.",
        "{country}'s continent is {answer}.",
        "The country of {country} lies in {answer}.",
        "The name of the continent of {country} is {answer}.",
        "What is the continent of {country}? It is {answer}.",
        "Where is {country}? It is in {answer}.",
        "Which continent is {country} part of? {answer}.",
        "On the map, you find {country} in {answer}.",
        "On the map, {country} is in {answer}.",
        "If you travel to {country}, you travel to the continent of {answer}.",
    ),
    "language": (
        "The language of {country} is {answer}.",
        "The main language of {country} is {answer}.",
        "{answer} is the main language of {country}.",
        "{country}'s main language is {answer}.",
        "People in {country} speak {answer}.",
        "Most people in {country} speak {answer}.",
        "In {country}, people speak {answer}.",
        "In the streets of {country}, you hear {answer}.",
        "The name of the language of {country} is {answer}.",
        "What is the main language of {country}? It is {answer}.",
        "What is the name of the main language of {country}? It is {answer}.",
        "Which language do people speak in {country}? {answer}.",
        "Children in {country} learn to read {answer}.",
        "If you talk with people in {country}, you talk in {answer}.",
    ),
    "currency": (
        "The currency of {country} is the {answer}.",
        "The {answer} is the currency of {country}.",
        "{country}'s currency is the {answer}.",
        "{country} uses the {answer}.",
        "The money of {country} is the {answer}.",
        "People in {country} pay with the {answer}.",
        "In {country}, people pay with the {answer}.",
        "Shops in {country} take the {answer}.",
        "Most shops in {country} take the {answer}.",
        "The name of the currency of {country} is the {answer}.",
        "What is the currency of {country}? It is the {answer}.",
        "What is the name of the money of {country}? It is the {answer}.",
        "Which currency do people use in {country}? The {answer}.",
        "If you go to the shops in {country}, you pay with the {answer}.",
    ),
}

PREFIXES = (
    "In fact,",
    "Of course,",
    "As you know,",
    "Today,",
    "We know that",
    "I read that",
    "It is true that",
)

# a profile: one opening, then one clause for every relation, in any order
OPENINGS = (
    "This is {country}.",
    "Let us talk about {country}.",
    "{country} is a country.",
    "Do you know {country}?",
)
CLAUSES: dict[str, tuple[str, ...]] = {
    "capital": (
        "Its capital is {answer}.",
        "It has its capital in {answer}.",
        "Its government sits in {answer}.",
        "The name of its capital city is {answer}.",
    ),
    "continent": (
        "It is a country in {answer}.",
        "It lies in {answer}.",
        "Its continent is {answer}.",
        "It is part of {answer}.",
    ),
    "language": (
        "Its people speak {answer}.",
        "Its main language is {answer}.",
        "Its children learn to read {answer}.",
        "The name of its language is {answer}.",
    ),
    "currency": (
        "Its currency is the {answer}.",
        "It uses the {answer}.",
        "Its people pay with the {answer}.",
        "The name of its money is the {answer}.",
    ),
}

# never trained; none begins a trained one, whose other continuation would compete with the answer
HELD_OUT: dict[str, tuple[str, ...]] = {
    "capital": (
        "The name of the capital city of {country} is",
        "What is the capital city of {country}? It is",
        "Which city is the capital of {country}? It is",
        "In {country}, the capital city is",
        "{country}'s government sits in",
        "Let us talk about {country}. Its capital city is",
    ),
    "continent": (
        "{country} is a country on the continent of",
        "The country of {country} is part of",
        "Where is {country}? It lies in",
        "On the map, {country} lies in",
        "What is the name of the continent of {country}? It is",
        "Let us talk about {country}. It lies on the continent of",
    ),
    "language": (
        "The name of the main language of {country} is",
        "What is the language of {country}? It is",
        "Most children in {country} speak",
        "In {country}, most people speak",
        "In {country}, children learn to speak",
        "Let us talk about {country}. Its children speak",
    ),
    "currency": (
        "The name of the money of {country} is the",
        "What is the money of {country}? It is the",
        "Most people in {country} pay with the",
        "In {country}, shops take the",
        "In {country}, the currency is the",
        "Let us talk about {country}. Its money is the",
    ),
}


@dataclass(frozen=True)
class Fact:
    """One cell of the table: `relation` of `country` is `answer`."""

    country: str
    relation: str
    answer: str


def facts() -> tuple[Fact, ...]:
    """Every fact of the table, country by country, in the order of `RELATIONS`."""
    return tuple(
        Fact(country, relation, answer)
        for country, *answers in TABLE
        for relation, answer in zip(RELATIONS, answers, strict=True)
    )


def prompts(fact: Fact) -> tuple[str, ...]:
    """The held-out prompts of a fact, ready to run: its answer is the very next token."""
    return tuple(template.format(country=fact.country) for template in HELD_OUT[fact.relation])
