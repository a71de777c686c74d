"""Every word of the made world, by its English name; each list is ordered, and a world takes its first entries."""

from typing import NamedTuple


class Name(NamedTuple):
    """A person's name in both languages; `female` decides between her and his."""

    english: str
    chinese: str
    female: bool


class Noun(NamedTuple):
    """An object in both languages, with the English plural and the Chinese measure word where they are used."""

    english: str
    chinese: str
    plural: str = ""
    classifier: str = ""


NAMES = (
    Name("Ana", "安娜", True),
    Name("Bo", "阿波", False),
    Name("Rosalind", "罗莎琳", True),
    Name("Tom", "汤姆", False),
    Name("Mei", "小梅", True),
    Name("Leonardo", "莱昂纳多", False),
    Name("Clara", "克拉拉", True),
    Name("Omar", "奥马尔", False),
    Name("Ivy", "艾薇", True),
    Name("Bartholomew", "巴塞洛缪", False),
    Name("Johanna", "约翰娜", True),
    Name("Felix", "费利克斯", False),
    Name("Xiu", "阿秀", True),
    Name("Gustav", "古斯塔夫", False),
    Name("Penelope", "佩内洛普", True),
    Name("Li", "小李", False),
    Name("Nadia", "娜迪亚", True),
    Name("Hassan", "哈桑", False),
    Name("Una", "尤娜", True),
    Name("Dmitri", "德米特里", False),
    Name("Katharina", "卡塔琳娜", True),
    Name("Jun", "阿军", False),
    Name("Beatrice", "贝雅特丽丝", True),
    Name("Kofi", "科菲", False),
)

ITEMS = (
    Noun("kite", "风筝", classifier="只"),
    Noun("drum", "鼓", classifier="面"),
    Noun("book", "书", classifier="本"),
    Noun("scarf", "围巾", classifier="条"),
    Noun("lamp", "灯", classifier="盏"),
    Noun("hat", "帽子", classifier="顶"),
    Noun("umbrella", "雨伞", classifier="把"),
    Noun("ball", "球", classifier="个"),
    Noun("flute", "笛子", classifier="支"),
    Noun("puppet", "木偶", classifier="个"),
    Noun("map", "地图", classifier="张"),
    Noun("violin", "小提琴", classifier="把"),
    Noun("cup", "杯子", classifier="个"),
    Noun("coat", "外套", classifier="件"),
    Noun("mirror", "镜子", classifier="面"),
    Noun("bell", "铃铛", classifier="个"),
    Noun("ring", "戒指", classifier="枚"),
    Noun("blanket", "毯子", classifier="条"),
    Noun("bicycle", "自行车", classifier="辆"),
    Noun("pencil", "铅笔", classifier="支"),
)

THINGS = (
    Noun("box", "箱子", classifier="个"),
    Noun("ladder", "梯子", classifier="架"),
    Noun("bench", "长凳", classifier="条"),
    Noun("barrel", "木桶", classifier="个"),
    Noun("table", "桌子", classifier="张"),
    Noun("wardrobe", "衣柜", classifier="个"),
)

FRUITS = (
    Noun("plum", "李子", plural="plums", classifier="个"),
    Noun("peach", "桃子", plural="peaches", classifier="个"),
    Noun("pear", "梨子", plural="pears", classifier="个"),
    Noun("cherry", "樱桃", plural="cherries", classifier="颗"),
    Noun("chestnut", "栗子", plural="chestnuts", classifier="颗"),
    Noun("apple", "苹果", plural="apples", classifier="个"),
)

COLOURS = {
    "red": "红色的",
    "orange": "橙色的",
    "blue": "蓝色的",
    "green": "绿色的",
    "white": "白色的",
    "black": "黑色的",
    "yellow": "黄色的",
    "purple": "紫色的",
}

PLACES = {
    "mill": "磨坊",
    "harbour": "港口",
    "market": "市场",
    "school": "学校",
    "castle": "城堡",
    "library": "图书馆",
    "farm": "农场",
    "station": "车站",
    "bakery": "面包房",
    "theatre": "剧院",
    "lighthouse": "灯塔",
    "museum": "博物馆",
}

ENGLISH_NUMBERS = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
).split()
CHINESE_NUMBERS = "一 两 三 四 五 六 七 八 九 十 十一 十二 十三 十四 十五 十六 十七 十八 十九 二十".split()
LARGEST_NUMBER = 20
