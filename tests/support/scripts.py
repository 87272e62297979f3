"""Words in two dozen scripts, and the lines made of them: what a tokenizer is trained on, and others to try it on."""

from __future__ import annotations

import random
from typing import NamedTuple


class Script(NamedTuple):
    """Words of a language and how they stand in a line."""

    words: tuple[str, ...]
    space: str = " "
    """What stands between words."""
    stop: str = "."


SCRIPTS: dict[str, Script] = {
    "Latin with accents": Script(
        tuple("année été déjà garçon Noël où même français élève cœur señor mañana Straße über größer façade".split())
    ),
    "Turkish": Script(
        tuple("İstanbul ışık çocuk güneş değil şeker ağaç öğretmen yağmur kırmızı küçük Iğdır gün iyi".split())
    ),
    "Vietnamese": Script(
        tuple("tiếng Việt người được không những trường học ở đâu nước một ngày đẹp quyển sách".split())
    ),
    "Greek": Script(tuple("η Ελλάδα είναι όμορφη χώρα καλημέρα θάλασσα ήλιος λόγος βιβλίο δρόμος ψυχή ξένος".split())),
    "Cyrillic": Script(tuple("мой город большой ёлка йогурт съезд объём жизнь щука Москва її є ґанок чорний".split())),
    "Hebrew": Script(tuple("שלום עולם ספר ילדה הלכה לבית הספר מים יום טוב לילה שָׁלוֹם".split())),
    "Arabic": Script(tuple("السلام عليكم كتاب مدرسة البيت الكبير شمس قمر وقال الولد مَدْرَسَةٌ إلى".split()), stop="؟"),
    "Persian": Script(
        tuple("می\u200cخواهم کتاب\u200cها نمی\u200cدانم خانه پدر مادر روز خوب گربه چرا".split()), stop="؟"
    ),
    "Urdu": Script(tuple("یہ کتاب بہت اچھی ہے لڑکا گھر ٹھیک ڈاک پاکستان میں ہوں گاؤں".split()), stop="۔"),
    "Hindi": Script(tuple("हिन्दी में किताब बहुत अच्छी है क्षमा ज्ञान लड़का स्कूल जाता पानी र\u094d\u200dय".split()), stop="।"),
    "Bengali": Script(tuple("বাংলা ভাষা আমি বই পড়ি ক্ষমা জল স্কুল যাই মা দাঁড়ি উৎসব".split()), stop="।"),
    "Tamil": Script(tuple("தமிழ் மொழி நான் புத்தகம் படிக்கிறேன் நீர் பள்ளி செல்கிறேன் அம்மா கொடு".split())),
    "Sinhala": Script(
        tuple("ශ\u0dca\u200dරී ලංකාව සිංහල පොත මම කියවමි ක\u0dca\u200dෂණය ගෙදර යනවා අම්මා".split())
    ),
    "Thai": Script(tuple("ฉัน ไป โรงเรียน กิน ข้าว ที่ บ้าน แมว สี ดำ ทำ น้ำ ใจ ดี".split()), space="", stop=" "),
    "Lao": Script(tuple("ຂ້ອຍ ໄປ ໂຮງຮຽນ ກິນ ເຂົ້າ ຢູ່ ບ້ານ ແມວ ສີ ດຳ".split()), space="", stop=" "),
    "Khmer": Script(tuple("ខ្ញុំ ទៅ សាលា រៀន ញ៉ាំ បាយ នៅ ផ្ទះ ឆ្មា ខ្មៅ".split()), space="", stop="។"),
    "Burmese": Script(tuple("ကျွန်တော် ကျောင်း သွား တယ် ထမင်း စား အိမ် မှာ ကြောင် မြန်မာ".split()), space="", stop="။"),
    "Tibetan": Script(tuple("བོད་ སྐད་ ཡིག་ ང་ སློབ་ གྲྭ་ ལ་ འགྲོ་ ཆུ་ ཁང་".split()), space="", stop="།"),
    "Amharic": Script(tuple("ሰላም ልጅ መጽሐፍ ቤት ውሃ ትምህርት ቀን ጥሩ አዲስ ኢትዮጵያ".split()), stop="።"),
    "Georgian": Script(tuple("საქართველო წიგნი სახლი წყალი კარგი დღე მზე ბავშვი ჭამს ყვავილი".split())),
    "Chinese": Script(tuple("我 喜欢 学习 中文 北京 天气 很 好 他们 在 家 休息 感染 病毒".split()), space="", stop="。"),
    "Japanese": Script(tuple("私 は 東京 に 行き ます かぎ ワクチン を 打った パーティー で 学校".split()), space="", stop="。"),
    "Korean": Script(tuple("나는 학교에 갑니다 백신을 맞았다 한국어 책이 좋아요 물을 마신다 오늘".split())),
    "emoji": Script(tuple("😀 🎉 👍🏽 👨\u200d👩\u200d👧 🏳️\u200d🌈 ❤️ 🇩🇪 party cake 🐈 ok".split())),
}
UNSPACED = tuple(name for name, script in SCRIPTS.items() if not script.space)


def lines_of(name: str, count: int, seed: int) -> list[str]:
    """Return lines of three to nine words in a script."""
    script, draw = SCRIPTS[name], random.Random(f"{name} {seed}")
    made = (script.space.join(draw.choices(script.words, k=draw.randint(3, 9))) for _ in range(count))
    return [f"{line}{script.stop}".strip() for line in made]
