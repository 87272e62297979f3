"""Words in two dozen scripts, and the lines made of them: what a tokenizer is trained on, and others to try it on."""

from __future__ import annotations

import random
from typing import NamedTuple


class Script(NamedTuple):
    """Words of a language and how they stand in a line."""

    listed: str
    space: str = " "
    """What stands between words."""
    stop: str = "."

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(self.listed.split())


SCRIPTS: dict[str, Script] = {
    "Latin with accents": Script(
        "année été déjà garçon Noël où même français élève cœur señor mañana Straße über größer façade"
    ),
    "Turkish": Script("İstanbul ışık çocuk güneş değil şeker ağaç öğretmen yağmur kırmızı küçük Iğdır gün iyi"),
    "Vietnamese": Script("tiếng Việt người được không những trường học ở đâu nước một ngày đẹp quyển sách"),
    "Greek": Script("η Ελλάδα είναι όμορφη χώρα καλημέρα θάλασσα ήλιος λόγος βιβλίο δρόμος ψυχή ξένος"),
    "Cyrillic": Script("мой город большой ёлка йогурт съезд объём жизнь щука Москва її є ґанок чорний"),
    "Hebrew": Script("שלום עולם ספר ילדה הלכה לבית הספר מים יום טוב לילה שָׁלוֹם"),
    "Arabic": Script("السلام عليكم كتاب مدرسة البيت الكبير شمس قمر وقال الولد مَدْرَسَةٌ إلى", stop="؟"),
    "Persian": Script("می\u200cخواهم کتاب\u200cها نمی\u200cدانم خانه پدر مادر روز خوب گربه چرا", stop="؟"),
    "Urdu": Script("یہ کتاب بہت اچھی ہے لڑکا گھر ٹھیک ڈاک پاکستان میں ہوں گاؤں", stop="۔"),
    "Hindi": Script("हिन्दी में किताब बहुत अच्छी है क्षमा ज्ञान लड़का स्कूल जाता पानी र\u094d\u200dय", stop="।"),
    "Bengali": Script("বাংলা ভাষা আমি বই পড়ি ক্ষমা জল স্কুল যাই মা দাঁড়ি উৎসব", stop="।"),
    "Tamil": Script("தமிழ் மொழி நான் புத்தகம் படிக்கிறேன் நீர் பள்ளி செல்கிறேன் அம்மா கொடு"),
    "Sinhala": Script("ශ\u0dca\u200dරී ලංකාව සිංහල පොත මම කියවමි ක\u0dca\u200dෂණය ගෙදර යනවා අම්මා"),
    "Thai": Script("ฉัน ไป โรงเรียน กิน ข้าว ที่ บ้าน แมว สี ดำ ทำ น้ำ ใจ ดี", space="", stop=" "),
    "Lao": Script("ຂ້ອຍ ໄປ ໂຮງຮຽນ ກິນ ເຂົ້າ ຢູ່ ບ້ານ ແມວ ສີ ດຳ", space="", stop=" "),
    "Khmer": Script("ខ្ញុំ ទៅ សាលា រៀន ញ៉ាំ បាយ នៅ ផ្ទះ ឆ្មា ខ្មៅ", space="", stop="។"),
    "Burmese": Script("ကျွန်တော် ကျောင်း သွား တယ် ထမင်း စား အိမ် မှာ ကြောင် မြန်မာ", space="", stop="။"),
    "Tibetan": Script("བོད་ སྐད་ ཡིག་ ང་ སློབ་ གྲྭ་ ལ་ འགྲོ་ ཆུ་ ཁང་", space="", stop="།"),
    "Amharic": Script("ሰላም ልጅ መጽሐፍ ቤት ውሃ ትምህርት ቀን ጥሩ አዲስ ኢትዮጵያ", stop="።"),
    "Georgian": Script("საქართველო წიგნი სახლი წყალი კარგი დღე მზე ბავშვი ჭამს ყვავილი"),
    "Chinese": Script("我 喜欢 学习 中文 北京 天气 很 好 他们 在 家 休息 感染 病毒", space="", stop="。"),
    "Japanese": Script("私 は 東京 に 行き ます かぎ ワクチン を 打った パーティー で 学校", space="", stop="。"),
    "Korean": Script("나는 학교에 갑니다 백신을 맞았다 한국어 책이 좋아요 물을 마신다 오늘"),
    "emoji": Script("😀 🎉 👍🏽 👨\u200d👩\u200d👧 🏳️\u200d🌈 ❤️ 🇩🇪 party cake 🐈 ok"),
}
UNSPACED = tuple(name for name, script in SCRIPTS.items() if not script.space)


def lines_of(name: str, count: int, seed: int) -> list[str]:
    """Return lines of three to nine words in a script."""
    script, draw = SCRIPTS[name], random.Random(f"{name} {seed}")
    made = (script.space.join(draw.choices(script.words, k=draw.randint(3, 9))) for _ in range(count))
    return [f"{line}{script.stop}".strip() for line in made]
