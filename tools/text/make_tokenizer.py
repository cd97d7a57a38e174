#!/usr/bin/env python3
"""Trains the small tokenizer.json of the tests and of `stoker synth`.

The pipeline is exactly that of the Qwen2 family (26 added tokens, NFC, its split regex, byte-level BPE); only the
vocabulary is small. The training text is what any Debian system has (licence texts, Python's library) plus the
sentences below, so that merges exist in scripts beyond ASCII.

    python3 make_tokenizer.py OUT.json [--vocab 3072]

Needs: pip install tokenizers. Written with 0.23.
"""
import argparse
import glob
import json

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
         r"|\s*[\r\n]+|\s+(?!\S)|\s+")

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
           "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>",
           "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]
PLAIN = ["<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
         "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>"]

SENTENCES = """
Der Heizer wirft Kohlen ins Feuer; größere Öfen brauchen mehr. Straße, Übermut, Äpfel, süß.
Le chauffeur nourrit le feu à l'étouffée, où l'été fut très chaud, ça va? Hôtel, œuvre, naïve.
El fogonero añade carbón al horno mañana por la tarde, ¿verdad? ¡Sí, señor!
Кочегар бросает уголь в топку, и машина едет быстрее. Это простой пример текста.
Ο θερμαστής ρίχνει κάρβουνο στη φωτιά. Αυτό είναι ένα απλό παράδειγμα.
火夫把煤炭送进炉膛，机器就能跑得更快。这是一个简单的例子。我们使用中文写代码注释。
釜焚きは石炭を火にくべます。これは簡単な例です。日本語のコメントも書きます。
화부는 석탄을 불에 넣는다. 이것은 간단한 예문입니다. 한국어 주석도 씁니다.
الوقاد يلقي الفحم في النار. هذا مثال بسيط على النص.
מסיק התנור זורק פחם אל האש. זה משפט פשוט.
स्टोकर आग में कोयला डालता है। यह एक सरल उदाहरण है।
คนเติมถ่านใส่ถ่านลงในเตาไฟ นี่คือตัวอย่างง่ายๆ
🔥🚂 👩‍💻 👍🏽 🇩🇪 ❤️ ✅ ≤ ≥ ≠ → ∑ √ π — “ ” … € £
"""


def corpus():
    names = sorted(glob.glob("/usr/share/common-licenses/*")) + sorted(glob.glob("/usr/lib/python3*/*.py"))
    for name in names:
        with open(name, encoding="utf-8", errors="ignore") as file:
            yield file.read()
    for _ in range(60):
        yield SENTENCES
    with open(__file__, encoding="utf-8") as file:
        yield file.read()


def train(texts, vocab):
    """A tokenizer with the Qwen2 family's pipeline: `vocab` tokens from the texts, then the 26 added ones."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(texts, trainer)
    # The plain ones are AddedToken(special=False), which skip_special_tokens does not remove.
    order = [(text, True) for text in SPECIAL] + [(text, False) for text in PLAIN]
    for text, special in order:
        token = AddedToken(text, single_word=False, lstrip=False, rstrip=False, normalized=False, special=special)
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([token])
    return tokenizer


def write(tokenizer, path):
    with open(path, "w", encoding="utf-8") as file:
        json.dump(json.loads(tokenizer.to_str()), file, ensure_ascii=False, separators=(",", ":"))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out")
    parser.add_argument("--vocab", type=int, default=4096, help="tokens before the 26 added ones")
    arguments = parser.parse_args()
    write(train(corpus(), arguments.vocab), arguments.out)


if __name__ == "__main__":
    main()
