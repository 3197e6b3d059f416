"""Words of the tasks: common, short, and one token each (after a space) in the vocabularies of GPT-2's descendants."""

from __future__ import annotations

_WORDS = """
red cat sun map hat dog cup box pen key bed car bus egg ice jam kit leg man net oil pan rat sea tea van web zip ant
bag cow dot ear fan gas hen ink jar law mud nut owl pig rug sky toy war wax fig apple bread chair dance earth flame
grape house island juice knife lemon mouse north ocean piano queen river stone table uncle voice water youth zebra
bird book cake coat door duck fish food game gate gold hand hill home horse iron king lake lamp land leaf lion milk
moon nose note park path plant pond rain ring road rock roof room rope rose salt sand seed ship shoe shop silk snow
soap sock song soup star tail tent tree wall wind wolf wood wool yard
"""
_NAMES = """
Ann Ben Tom Eva Kim Leo Max Mia Sam Bob Dan Eric Jack John Kate Lily Lucy Mark Mary Nina Paul Rose Ruth Ivan Omar
Noah Emma Anna Adam Alan Carl Fred Gary Hugo
"""
WORDS = tuple(_WORDS.split())
NAMES = tuple(_NAMES.split())
MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
