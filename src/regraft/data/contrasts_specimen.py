"""The contrastive groups in the words of the almanac, as rows: prompt, base, synonym, antonym, style and
unrelated.

`regraft.data.contrasts` says what these are, and makes groups of the rows.
"""

# One group a row, not one string a line.
# fmt: off
SPECIMEN_IMMEDIATE: tuple[tuple[str, str, str, str, str, str], ...] = (
    ("The ship from the harbour was", " fast", " quick", " slow", " fleet", " wooden"),
    ("The train to the station was", " fast", " quick", " slow", " rapid", " green"),
    ("The farm near the river was", " big", " large", " small", " sizeable", " yellow"),
    ("The lamp in the theatre was", " big", " large", " small", " great", " French"),
    ("The key in the basket was", " small", " little", " big", " wee", " brown"),
    ("The garden behind the church was", " small", " little", " big", " diminutive", " green"),
    ("Mary went to the school and was", " happy", " glad", " sad", " merry", " early"),
    ("Peter got a letter and felt", " happy", " glad", " sad", " joyous", " cold"),
    ("When Tom lost the ring, he was", " sad", " unhappy", " happy", " woeful", " young"),
    ("The old king of the north was", " rich", " wealthy", " poor", " affluent", " French"),
    ("The sum on the page was", " hard", " difficult", " easy", " tough", " short"),
    ("The road over the stone bridge was", " hard", " difficult", " easy", " arduous", " brown"),
    ("At night the library was", " quiet", " silent", " loud", " hushed", " closed"),
    ("The morning in the park was", " quiet", " silent", " loud", " noiseless", " grey"),
    ("With one coin Anna went to the market to", " buy", " purchase", " sell", " procure", " speak"),
)

SPECIMEN_SHARED: tuple[tuple[str, str, str, str, str, str], ...] = (
    ("Jack has a horse. It is",
     " a very fast horse", " a very quick horse", " a very slow horse", " a very fleet horse",
     " a very brown horse"),
    ("Hugo says that the train to Berlin is",
     " really very fast", " really very quick", " really very slow", " really very rapid",
     " really very yellow"),
    ("Clara sees a ship. It is",
     " a very big ship", " a very large ship", " a very small ship", " a very mighty ship",
     " a very old ship"),
    ("The theatre in Rome is",
     " known to be big", " known to be large", " known to be small", " known to be sizeable",
     " known to be white"),
    ("In the basket there was",
     " only a small apple", " only a little apple", " only a big apple", " only a wee apple",
     " only a green apple"),
    ("The bell of the church is",
     " said to be small", " said to be little", " said to be big", " said to be diminutive",
     " said to be French"),
    ("On Sunday Ella was",
     " once again happy", " once again glad", " once again sad", " once again merry", " once again late"),
    ("The people in Norway are",
     " most often happy", " most often glad", " most often sad", " most often joyous", " most often indoors"),
    ("Alice lost the letter. She was",
     " at first sad", " at first unhappy", " at first happy", " at first sorrowful", " at first alone"),
    ("When winter came, James felt",
     " a little sad", " a little unhappy", " a little happy", " a little blue", " a little hungry"),
    ("David has a ship and a farm. He is",
     " now a rich man", " now a wealthy man", " now a poor man", " now a moneyed man", " now a married man"),
    ("The merchant from Cairo was",
     " once very rich", " once very wealthy", " once very poor", " once very affluent", " once very thin"),
    ("Simon looks at the sum. It is",
     " a very hard sum", " a very difficult sum", " a very easy sum", " a very tough sum",
     " a very short sum"),
    ("At night the station is",
     " so very quiet", " so very silent", " so very loud", " so very hushed", " so very cold"),
    ("Nora went to the store because",
     " she hoped to buy a lamp", " she hoped to purchase a lamp", " she hoped to sell a lamp",
     " she hoped to procure a lamp", " she hoped to meet a friend"),
)
# fmt: on
