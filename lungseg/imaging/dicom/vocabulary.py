"""Words for body parts and views in DICOM files and listings. Data only; `wording` matches them.

Words are separated by white space. `*` stands for any letters before or after a word, and `+` for a space. Case,
accents and width do not matter: `*thora*` matches THORAX and Intrathorakal, `torac*` matches Torácica. German umlauts
also match in their spelling with e. Terms of DICOM: PS3.16 Annex L (body parts), PS3.3 C.8.1.2 and PS3.16 CID 4010
(views).
"""

PLACEHOLDERS = """
na nan nd null nil none no not specified specific applicable available defined given set stated unspecified undefined
unknown unk undetermined unclassified other others any all default misc miscellaneous general anonymous anonymized
anonymised removed redacted deidentified blank empty missing various x xx xxx u o test
unbekannt keine keiner kein sonstige sonstiges andere anderes inconnu inconnue autre autres aucun aucune
desconocido desconocida otro otra otros ninguno ninguna desconhecido outro outra nenhum nenhuma sconosciuto altro altri
nessuno nessuna onbekend overig overige anders geen nieznany nieznana inne inny brak neznamy jine okand annat ovrigt
ukendt andet ukjent annet muu tuntematon bilinmiyor diger yok неизвестно неизвестный нет другое другая прочее невідомо
nicht bekannt angabe angaben angegeben unspec tbd tba tbc pending ndef nvt niet opgegeven ikke ej angivet angitt oppgitt
opgivet ei tiedossa brak+danych danych dane informacji podano podana nie neni uvedeno sin sem datos dato dados informado
informada especificado especificada especificar aplica aplicavel aplicable definido definida nao definito definita
specificato specificata indicato indicata non pas specifie specifiee precise precisee renseigne renseignee indique
applicable belirtilmemis belirtilmedi не указано указан указана задано определено определен данных данные вказано
посочено нема
不详 不詳 ka sd data no+data to+be+defined sans ohne leer vide vuoto vacio vazio void deleted invalid error unassigned
ignorado
notavailable notapplicable notspecified notdefined notset notgiven bodypart bodypartexamined body+part
neznam* ismeretlen* nepoznat* necunoscut* nezinom* nezinam* teadmata неизвестен неизвестна αγνωστ* לא+ידוע معروف ไม่ทราบ
khong+ro tidak+diketahui tidak+ada 未詳 알수없음 알수+없음
未填写 未填 未入力 未記入 未設定 未定 待定 无数据 該当なし 該当無し 該当 미지정 해당없음 غير محدد
不明 その他 なし 無 無し 无 未知 其他 其它 未指定 기타 없음 불명 미상
"""
"""Words that say nothing. Text without any letter says nothing either."""

CHEST = """
heart herz coeur corazon coracao cuore hart 心臓 心脏 심장 сердце *chest* chst* cxr thx thor thorx *thora* *thorac*
*torax* *torac* *torak*
lung lungs lungen* lunge lunger lungor* lungebillede* lungrontgen*
*pulmo* pulm mediastin* pleura* brust* poumon* poitrine polmon* petto pecho peito borst* borstkas* longen longfoto*
bryst* bröst* keuhko* rintakeha* rinta rindkere kops* klatk*+piersiow* klp pluc* hrudnik* hrud hrudn* plic*
mellkas* tudo tudok* pulmao piept* prsa plaus* plaman* gogus* akciger* grudn* prsn*+kos* krutin* plauc* plauci*
грудн* грудь груднои легк* легоч* огк флг флюорогр* легени легень гръд* бял+дроб плућа θωρακ* πνευμον* στηθ*
*صدر* *رئت* حزه חזה ריאות سینه ریه nguc phoi dada paru* *ทรวงอก* *ปอด*
*胸* *肺* *キョウブ* むね *흉부* *흉곽* *가슴* 폐 폐부 양폐
"""

CHEST_COMPANIONS = """
structure structures region area entire whole upper lower of and und et y i for with single two one three wall cavity
cage organs organ field fields zone zones adult adulte adulto adults paed* ped* child* infant* neonat* newborn baby
kind kinder enfant* nino* routine standard standart std stat emergency er ed icu ccu nicu picu ward follow up followup
post pre op preop postop check control screening clinical plain film films image images radiograph* radiograf* xr dx cr
dr digital exam exams examen examination study imaging series foto photo bild bilder aufnahm* ubersicht* rontgen* rtg
zdjec* przegl* kosz kos korb raum organe snimka snimek снимок рентген* рентгенограф* орган органы органов клетк* клітк*
полост* обзорн* кош caja cavidad cavita cavite cage+thoracique gabbia cassa cutia simple simples graf grafi* filmi
tele teleradiograf* patient bed bedside bett geraet low high dose kv protocol protokol* du des del della im in auf
kid kids bettaufnahm* nativ* natiiv* quang thang dan caixa cord lasta органи צילום
x線 x线 レントゲン 単純 単純撮影 撮影 摄影 摄片 正侧位 正側 正侧 片 平片 检查 検査 床旁 床边 촬영 단순 단순촬영 사진 x선
"""
"""Harmless words beside a word for the chest. Beside any other word, the body part is not certain."""

CHEST_GLUE = """
pa ap lat lateral xray xr rx rtg cr dr adult ped port portable bed bedside routine erect supine intra cardio organe
raum korb ubersicht aufnahme aufnahmen rontgen bild bilder foto film kasse kasten korg kas kassen kotelo kehan kehä
ال x 部 廓 腔 野 門 纹理 正位 側位 侧位 正面 側面 正侧位 正側 立位 臥位 卧位 坐位 仰臥位 后前位 後前位 后前
後前 前后 前後 片 像 平片 摄影 摄片 撮影 单纯 単純 x線 x线 写真 検査 检查 双 両 两 左 右 床旁 床边 数字 心 心臓
ポータブル 부 단순 촬영 사진 정면 측면
"""
"""Parts that a compound with a word for the chest may have, such as Lungenübersicht and 胸部正位."""

SPINE_AND_STERNUM = """
*spine* spinal* bws hws lws *vertebr* *wirbel* rachis* *column* colonne colonna coluna *kregosl* *rygg* ryg *rygs*
*brystryg* *hvirvel* *wervel* *ranka* *rangan* pater patere *gerinc* omurga* lumb* *lumbal* cervi* sacr* kralje* hrbten*
позвон* хребет* прешлен* кичм* σπονδυλ* *脊柱* *脊椎* *脊髓* *胸椎* *腰椎* *頚椎* *頸椎* *颈椎* *척추* *흉추* *경추*
*요추* coloan* *kolumn* *virvel* *kotor kota kotan *kotpelar* brostkot* cot+song dot+song cac+dot+song
*عمود* *فقر* *فقار* *ستون* *שדרה* חוליות חוליה *สันหลัง* хребт* хребц* гръбна* гръбнач* kicm* obratl* csigoly*
stavec stavc* chrbtic* vretenc* kregi kregow kregu *nikama* *lulisam* mugurkaul* skriemel* stubur* slankstel*
tulang+belakang omur* rug ruggengraat* *lumba* *lomba* lomber* поясни* попереков* *胸腰* *胸段* *흉요* *흉추* disc
discs disk disks disque* bandscheib* *椎间盘* *椎間板* *椎体*
prsn*+kost* hrudn*+kost* grudn*+kost* грудн*+кост* гръдн*+кост* груднин* tulang+dada xuong+uc gogus+kemi* *عظم* القص
szegycsont* rintalast* esternon* *esternal *sternal brustbein* borstbeen* brystben* brostben* *胸骨* *흉골* *胸锁*
*胸鎖* грудин* brustdrus* brustdrues*
"""
"""Body parts whose names contain a word for the chest ("thoracic spine"). They count even beside such a word."""

SEVERAL_PARTS = """
babygram* baby+gram* wholebody whole+body total+body totalbody torso trunk rumpf ganzkorper* corps+entier
cuerpo+entero corpo+inteiro total+corporal cap *全身* *전신* *躯干* *体幹*
"""
"""Regions that include the chest and other body parts."""

OTHER_PARTS = {
    "DICOM and English": """
abd *abdom* adrenal* ankle* antrum aorta* arm arms axilla* back belly bladder brain breast* bronch* buttock*
calcaneus calcaneum calf carotid* carpal* carpus cerebell* cerebr* cheek circleofwillis* clavicle* coccyx colon
cornea* coronary*
cranium *cranial* dental* duodenum ear ears elbow* esophag* extremit* eye eyes eyelid face facial femur* femoral fibula*
finger* foot feet forearm* forefoot forehead gallbladder genital* groin gum hands *hand head heads headneck heel*
hip hips humerus iac ileum iliac* ilium intestin* jaw jejunum joint kidney* knee* kub larynx leg legs limb limbs liver
lspine lsspine mandib* mandible mastoid* maxill* metacarp* metatars* mouth nasal nasopharynx neck* nose nostril orbit*
ovary ovaries palate pancreas panorex parotid* patella* pelv* *pelvis pelvic penis perine* pharyn* placenta prostat*
radius radiusulna rectum renal rib ribs scalp scaphoid* scapula* sclera scrotum sella* sesamoid* shoulder* sinus sinuses
skull skeleton spleen stern* stomach submandib* tarsal* tarsus teeth tooth temporal* testis testes testicle* thigh*
thumb* thymus thyroid* tibia* tibiafibula tmj toe toes tongue tonsil* trachea* ulna* umbilic* upper+limb ureter*
urethra* abdpelv* up+exm low+exm genu manus *mammo* urinary urogenital uterus vagina* vulva wrist* zygom* airway*
acjoint sijoint opticcanal
""",
    "German": """
*bauch* *becken* hüft* *oberschenkel* *unterschenkel* knie* sprunggelenk* *fuss* fusse füsse ferse zehe* hand*
finger daumen* handgelenk* ellenbogen* ellbogen* *oberarm* *unterarm* schulter* schlüsselbein* klavikula*
schulterblatt* schädel* kopf* gesicht* kiefer* *kiefer* zahn* zähne nase* nasennebenhohlen nnh hals* rippe* niere*
blase leber magen darm mamma* arm bein beine extremität* gelenk* weichteil* skelett*
""",
    "French": """
ventre bassin hanche* cuisse* genou* jambe* cheville* pied pieds orteil* talon main mains poignet* doigt* pouce
coude* bras avant+bras epaule* clavicule* omoplate* crane* tete visage machoire dent dents sinus nez cou rein reins
foie vessie estomac cotes gril+costal sein seins membre* squelette
""",
    "Spanish, Portuguese, Italian, Romanian": """
cadera* muslo* rodilla* pierna* tobillo* pie pies mano manos muñeca* dedo dedos pulgar codo codos brazo* antebrazo*
hombro* clavicula* escapula* omoplato* craneo* cabeza cara mandibula* diente* senos+paranasales spn nariz cuello riñon*
higado vejiga estomago costilla* parrilla+costal mama mamas extremidad* vientre
quadril* coxa joelho* perna* tornozelo* pé pés calcanhar mão mãos punho* cotovelo* braço* antebraço* ombro* crânio*
cabeça face maxilar dente* seios+paranasais pescoço rim rins fígado bexiga costela* arcos+costais bacia membro*
addome anca anche coscia ginocchi* gamba gambe caviglia* piede piedi polso polsi dito dita gomito gomiti braccio
avambraccio spalla spalle clavicola* scapola* cranio testa viso mandibola* denti collo rene reni fegato vescica
costole coste emicostato* bacino arto arti seno seni
abdomen* bazin sold genunchi* glezna* picior* mana incheietura deget* umar* craniu* gat coaste
""",
    "Dutch, Danish, Norwegian, Swedish, Finnish": """
buik* bekken* heup* knie* enkel* voet voeten teen tenen pols* vinger* duim* elleboog* schouder* sleutelbeen*
schedel* hoofd* gezicht* kaak* tand* nek hals* rib ribben nier nieren been benen bovenarm* onderarm* bovenbeen*
onderbeen*
mave* bug buk* bækken* bekken* bäcken* hofte* höft* knæ* kne knä* ankel* fotled* fod fodder fot fotter hånd* håndled*
handled* finger* albue* armbåge* skulder* skuldra* axel kraveben* nyckelben* kranie* kranium hoved* hode* huvud* kæbe*
kjeve* käke* hals* ribben* revben* nyre* njur* lår underben* ben
vatsa* lantio* lonkka* polvi* nilkka* jalka* jalkatera* käsi* ranne* sormi* kyynärpää* olkapää* olka* kallo* pää kaula*
""",
    "Polish, Czech, Slovak, Croatian, Hungarian": """
brzuch* brzuszn* jama+brzuszna miednic* biodr* udo udow* kolan* podudz* kostk* staw* stop* stopy dlon* dłoń reka ręka
ręki nadgarst* palec palce palca łokieć łokci* lokiec ramie ramię bark* obojczyk* łopatk* czaszk* głow* glow* twarz*
żuchw* zęb* zatok* szyj* zebr* żebr* nerk* piers piersi mostek
brich* břich* pánev panv* kycel* kyčel* koleno kolen* kotnik* noha nohy prst prsty ruka ruky zapest* loket rameno lebk*
lebka hlav* krk zebr* zdjelic* kuk koljen* glezanj stopal* šaka lakat rame lubanj* trbuh* glav*
hasi medence* csipo* terd* boka* lab labfej* kez csuklo* ujj* konyok* vall* koponya* fej nyak borda*
""",
    "Russian, Ukrainian, Bulgarian, Serbian, Greek": """
живот* живіт черев* брюш* таз таза тазоб* бедр* колен* голен* голеност* стоп* кисть кисти рука руки рук палец пальц*
локт* локот*
плеч* ключиц* лопатк* череп* голов* лиц* челюст* зуб зубы пазух* ппн нос носа шея шеи ребр* почк* нога ноги конечност*
сустав* молочн* колин* стегн* кульш* гомілк* лікт* шия ребра глава ръка крак китка коляно рамо таз зглоб*
κοιλι* λεκαν* ισχι* γονατ* ποδι* ποδοκν* χερι* χειρ* καρπ* αγκων* ωμος ωμου κρανι* κεφαλ* αυχην*
""",
    "Turkish, Indonesian, Vietnamese": """
karin batin pelvis kalca* diz ayak* bilek* parmak* dirsek* kol omuz* kopru* kafa* kafatas* cene* boyun kaburga*
perut panggul lutut kaki tangan siku bahu kepala leher bung khop goi chan tay vai so+nao
""",
    "Arabic, Hebrew, Thai": """
*بطن* *حوض* *ركب* *جمجم* *كتف* يد اليد *قدم* בטן ברך אגן
כתף גולגולת *ท้อง* *เข่า* *กะโหลก*
""",
    "Chinese and Japanese": """
*腹部* 腹 *骨盆* *骨盤* *髋* *股関節* *膝* *踝* *足部* 足 左足 右足 *足関節* *足趾* *手部* 手 左手 右手 *手指* *手腕*
*手関節* *腕关节*
*肘* *肩部* *肩关节* *肩関節* 肩 *锁骨* *鎖骨* *肩胛* *肩甲* *头部* *頭部* 頭 头 *頭蓋* *头颅* *顔面* *面部* *颌* *顎*
*牙* *歯* *鼻* *副鼻腔*
*胃* *肠* *腸* *肝* *脳* *脑* *颈部* *頸部* *頚部* 首 *肋骨* *肾* *腎* *膀胱* *乳腺* *乳房* *四肢* *上肢* *下肢* *大腿*
*小腿* *下腿* *前臂* *上臂*
*前腕* *上腕* *眼部* *眼眶*
""",
    "Korean": """
*복부* *골반* *고관절* *무릎* *슬관절* *발목* *족부* 발 *손목* *수부* 손 *손가락* *팔꿈치* *주관절* *어깨* *견관절*
*쇄골* *견갑*
*두부* *두개* 머리 *안면* *턱* *치아* *부비동* *경부* *늑골* *갈비* *신장* *방광* *유방* *사지* *상지* *하지* *대퇴*
*하퇴* *상완* *전완*
""",
}
"""Body parts that are not the chest, by language."""

LATERAL = """
latchest chestlat latthorax thoraxlat lattorax toraxlat latcxr cxrlat latlung* chestll chestrl llchest rlchest
*latera* lat lats llat rlat latl latr ll rl lr ml lm xtl xtlat xtable* x+table* crosstable* cross+table* swim*
swimmer* schwimmer* profil* perfil* seite seitl* seiten* seitauf* zijd* zijaanz* zijwaarts dwars* sidobild* sidebild*
sidebillede*
sideopt* sivukuva* sivu boczn* bok bokiem bocn* bočn* postran* oldal* oldalir* yan yandan латераль* бок* боков* профил*
бічн* страничн* πλαγι* جانبي *צדדי* nghieng samping ctlat xlat latero sideview side+view
προφιλ* צד ด้านข้าง kylki* sivul* sonin* sanu sanis kulg* kulj* *側面* *侧面* *側位* *侧位* *側方* *측면* *측방* *측위*
"""

NOT_LATERAL = "bilatera* unilatera* ipsilatera* contralatera* laterality lateralidad lateralite lateralitat"

LYING_FLAT = "dorsal* ventral* supin* prone prono prona bauchlage ruckenlage"
"""With these a lateral decubitus is a lateral view: the beam is horizontal (PS3.3 C.8.11.5)."""

DECUBITUS = "lld rld *seitenlage* zijligging* *decub* *dekub* *側臥* *侧卧* *측와*"
"""A view of a patient who lies on a side. The beam is frontal, so the view counts as frontal."""

OBLIQUE = """
lao rao lpo rpo llo rlo obl oblq obli *obliq* *obliqu* *oblicu* *oblik* *oblič* *schräg* schuin* skosn* skośn* skra
skrå* snett sned* vino vinokuva* sikm* šikm* ferde egik λοξ* เอียง косая косои косые косо кос πλαγιομετωπ* *斜位* *斜め*
*斜方*
사위 *사방*
"""

FRONTAL = {
    "PA": """
pa paerect pachest chestpa pathorax thoraxpa patorax toraxpa pacxr cxrpa posteroanterior* postero+anterior*
postero+anteri* posteroant* postero+ant dv dorsoventral* dorso+ventral*
zadnjeprednj* zadopredn* tylnoprzedn* tylno+przedn* задне+передн* заднепередн* задн*+пря* οπισθοπροσθ* *后前* *後前*
*후전*
""",
    "AP": """
ap apsupine aperect apport* apchest chestap apthorax thoraxap aptorax toraxap apcxr cxrap anteroposterior*
antero+posterior* antero+posteri* anteropost* antero+post vd ventrodorsal* ventro+dorsal*
predozadn* prednjezadnj* przedniotyln* przednio+tyln* передне+задн* переднезадн* передн*+пря* προσθοπισθ* on+arka onarka
*前后*
*前後* *전후*
""",
    "": """
front frontal* face facing przod прям* прямая frontale frontalny etukuva* forfra framifran voraanzicht
frente szembol προσθι* depan thang ด้านหน้า امامي* μετωπ* cephe *正位* *正面* *정면* *정방*
""",
}
"""Frontal views by DICOM term; `""` for those that do not say the direction of the beam."""

NEUTRAL_VIEW_WORDS = """
erect upright standing stand supine prone sitting sit seated semi semierect lying recumbent bed bedside portable port
mobile inspiration insp inspiratory expiration exp expiratory grid nogrid left right l r both
lt rt
view views projection proj pos position de en the of x ray xray rx room icu trauma stretcher horizontal vertical
ebene ebenen stehend liegend sitzend stehen liegen sitzen aufnahme bett strahlengang debout couche assis incidence au
lit
de+pie em+pe bipedestacion acostado ortostat* leito posizione letto in piedi supino staande liggend zittend
立位 臥位 坐位 仰臥位 卧位 仰卧位 站立位 입위 와위 앙와위 лежа стоя сидя проекция проекции
"""
"""Words in a view that say nothing about the direction of the beam."""

CHEST_CODES = frozenset({"T-D3000", "T-28000", "51185008", "39607008", "43799004", "816094009"})
"""Codes for chest, lung, and structure of the thorax and of its cavity, in SNOMED RT and SNOMED CT (CID 4031)."""

SEVERAL_PARTS_CODES = frozenset(
    {"R-FAB55", "R-FAB56", "R-FAB52", "R-FAB53", "R-FAB54", "T-D0010"}
    | {"416550000", "416775004", "417437006", "416152001", "416319003", "38266002"}
)
"""Codes for the chest together with abdomen, pelvis or neck, and for the whole body (CID 4031)."""

LATERAL_CODES = frozenset(
    {"R-102CD", "R-10236", "R-10232", "R-10224", "R-10228"}
    | {"399067008", "399173006", "399198007", "399260004", "399352003"}
)
"""Codes for lateral views, in SNOMED RT and SNOMED CT (CID 4010)."""

OBLIQUE_CODES = frozenset(
    {"R-10210", "R-10250", "R-10216", "R-10230", "R-10248", "R-10220", "R-40783", "R-10234", "R-10226", "R-40985"}
    | {"R-10208", "R-10238", "R-102C1", "R-40782", "R-10252", "R-10254", "R-10204", "R-10246", "R-10212"}
    | {"399038007", "399225005", "399059000", "399099002", "399288005", "399135007", "260427002", "399236003"}
    | {"399368009", "399356000", "399312000", "399184004", "399182000", "260426006", "399132005", "399325008"}
    | {"399160007", "399004004", "399006002", "260421001", "260424009", "R-4077D", "R-40780"}
)
"""Codes for oblique views, in SNOMED RT and SNOMED CT (CID 4010)."""

FRONTAL_CODES = {
    **dict.fromkeys(("R-40888", "272479007", "R-10214"), "PA"),
    **dict.fromkeys(("R-10206", "399348003"), "AP"),
    **dict.fromkeys(("R-10202", "399033003"), ""),
}
"""Codes for frontal views, in SNOMED RT and SNOMED CT (CID 4010), with their DICOM term."""

GUESSED_CHARACTER_SETS = (
    "utf_8",
    "iso2022_jp",
    "cp1252",
    "cp1250",
    "cp1251",
    "iso8859_5",
    "koi8_r",
    "cp1254",
    "iso8859_7",
    "gb18030",
    "euc_kr",
    "cp932",
    "euc_jp",
    "big5",
)
"""Character sets that are tried if the text has no known word in the declared ones."""
