"""How fast a tokenizer reads before and after it was given new tokens: `python benchmarks/vocabulary.py TOKENIZER TEXT [--extend N]`.

TEXT is anything a source's `path` may be. Seconds are those of the processor, the best of several passes in turn, one thread: other
work on the machine does not count.
"""

from __future__ import annotations

import argparse
import os
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # before the library is loaded

from ziggurat.data.sources import Files, documents
from ziggurat.text.tokenizer import Tokenizer
from ziggurat.text.vocabulary import VocabularySpec, extend


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer")
    parser.add_argument("text")
    parser.add_argument("--extend", type=int, default=2000)
    parser.add_argument("--segmenter", choices=("characters", "jieba"))
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--passes", type=int, default=5)
    given = parser.parse_args()
    texts = [d.texts["text"] for d in documents(Files(path=given.text, limit=given.documents), "train")]
    old = Tokenizer.load(given.tokenizer)
    found = extend(old, texts, VocabularySpec(extend=given.extend, segmenter=given.segmenter))
    some, size = [], 0
    for text in texts:
        some.append(text)
        size += len(text)
        if size > 1_000_000:
            break
    best, counts = {"before": 9e9, "after": 9e9}, {}
    for _ in range(given.passes):
        for when, tokenizer in (("before", old), ("after", found.tokenizer)):
            began = time.process_time()
            encodings = tokenizer.library.encode_batch(some, add_special_tokens=False)
            best[when] = min(best[when], time.process_time() - began)
            counts[when] = sum(len(e.ids) for e in encodings)
    words = found.sample["words"]
    for when in best:
        print(
            f"{when:7} {found.sample[f'tokens_{when}'] / words:.3f} tokens a word, {found.sample[f'unknown_{when}']:,} unknown; "
            f"{size / best[when] / 1e6:.2f} M characters/s, {counts[when] / best[when] / 1e6:.2f} M tokens/s"
        )


if __name__ == "__main__":
    main()
